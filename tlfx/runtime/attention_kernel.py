"""Labels of fused attention in one Triton kernel: no weights in memory, no copies of queries and keys.

A program computes up to 64 queries of one sample. It loops over heads and blocks of keys with an online softmax, and
writes the mean over heads. Queries, keys, masks and labels are read in place, by their strides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tlfx.runtime.kernels import device_of, is_interpreted, launched, operator, strides

__all__ = ["attention_labels", "attention_labels_kernel", "most_rows"]

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_labels_kernel(
    query, key, labels, own, mask, index, residual, out,
    groups, inner, count, keys, width, scale,
    q_batch, q_group, q_inner, q_head, q_row, q_column,
    k_batch, k_group, k_inner, k_head, k_row, k_column,
    y_batch, y_group, y_inner, y_row, y_channel,
    o_batch, o_group, o_inner, o_row, o_channel,
    r_batch, r_group, r_inner, r_row, r_channel,
    m_batch, m_group, m_inner, m_head, m_row, m_column,
    HEADS: tl.constexpr, PER_KEY: tl.constexpr, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, WIDTH_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, OWN: tl.constexpr, INDEX: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Labels of a block of queries at one place (batch, group, inner); pointers, sizes, strides, then what is compiled
    in. ``MASK`` is 0 for none, 1 for a boolean and 2 for an additive mask; ``WIDEN`` multiplies in float32."""
    # programs count blocks of queries first, then places
    blocks = tl.cdiv(count, ROWS)
    place = (tl.program_id(0) // blocks).to(tl.int64)
    batch, group, within = place // inner // groups, place // inner % groups, place % inner
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    column, dim, channel = tl.arange(0, COLUMNS), tl.arange(0, WIDTH_BLOCK), tl.arange(0, CHANNEL_BLOCK)
    in_rows, in_width = row < count, dim < width
    at = row.to(tl.int64)  # offsets may exceed 32 bits
    if INDEX:
        at = tl.load(index + row, mask=in_rows, other=0)
    query += batch * q_batch + group * q_group + within * q_inner
    key += batch * k_batch + group * k_group + within * k_inner
    labels += batch * y_batch + group * y_group + within * y_inner
    mask += batch * m_batch + group * m_group + within * m_inner
    end = keys
    if CAUSAL:
        # the last query of the block sees no key after itself, and so no other query does
        end = tl.minimum(keys, tl.max(at, 0).to(tl.int32) + 1)

    total = tl.zeros((ROWS, CHANNEL_BLOCK), tl.float32)
    alive = tl.zeros((ROWS,), tl.float32)
    for head in range(HEADS):
        of_head = tl.cast(head, tl.int64)
        # (ROWS, WIDTH_BLOCK)
        q = tl.load(
            query + of_head * q_head + at[:, None] * q_row + dim[None, :] * q_column,
            mask=in_rows[:, None] & in_width[None, :],
            other=0.0,
        )
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, CHANNEL_BLOCK), tl.float32)
        for start in range(0, end, COLUMNS):
            to = (start + column).to(tl.int64)
            in_keys = to < keys
            # (WIDTH_BLOCK, COLUMNS)
            k = tl.load(
                key + of_head // PER_KEY * k_head + to[None, :] * k_row + dim[:, None] * k_column,
                mask=in_keys[None, :] & in_width[:, None],
                other=0.0,
            )
            if WIDEN:
                q, k = q.to(tl.float32), k.to(tl.float32)
            # not in TF32, the default for float32, which keeps 10 bits; the scale has a factor log2(e) for exp2
            score = tl.dot(q, k, input_precision="ieee") * scale
            seen = in_keys[None, :]
            if MASK > 0:
                # (ROWS, COLUMNS)
                given = tl.load(
                    mask + of_head * m_head + at[:, None] * m_row + to[None, :] * m_column,
                    mask=in_rows[:, None] & in_keys[None, :],
                    other=0,
                )
                if MASK == 1:
                    seen = seen & (given != 0)
                else:
                    score += given.to(tl.float32) * _LOG2E
            if CAUSAL:
                seen = seen & (at[:, None] >= to[None, :])
            score = tl.where(seen, score, float("-inf"))
            larger = tl.maximum(largest, tl.max(score, 1))
            # a row that saw no key so far: -inf - -inf is NaN
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            weight = tl.exp2(score - shift[:, None])
            decay = tl.exp2(largest - shift)
            largest = larger
            mass = mass * decay + tl.sum(weight, 1)
            # what was summed so far, under the new maximum
            mixed = mixed * decay[:, None]
            # tl.dot multiplies at least 16 columns, more than labels have channels
            for c in tl.static_range(CHANNELS):
                label = tl.load(labels + to * y_row + c * y_channel, mask=in_keys, other=0.0)
                mixed += tl.where((channel == c)[None, :], tl.sum(weight * label[None, :], 1)[:, None], 0.0)
        if OWN:  # a head in which a query sees no key does not count
            sees = mass != 0.0
            total += tl.where(sees[:, None], mixed / tl.where(sees, mass, 1.0)[:, None], 0.0)
            alive += tl.where(sees, 1.0, 0.0)
        else:
            total += mixed / mass[:, None]
    written = in_rows[:, None] & (channel < CHANNELS)[None, :]
    if OWN:
        of_own = own + batch * o_batch + group * o_group + within * o_inner
        kept = tl.load(of_own + at[:, None] * o_row + channel[None, :] * o_channel, mask=written, other=0.0)
        total = tl.where((alive > 0.0)[:, None], total / tl.maximum(alive, 1.0)[:, None], kept)
    else:
        # the mean over heads (eq. 7)
        total = total / HEADS
    if RESIDUAL:
        skip = residual + batch * r_batch + group * r_group + within * r_inner
        skipped = tl.load(skip + row[:, None] * r_row + channel[None, :] * r_channel, mask=written, other=0.0)
        total = (total + skipped) * 0.5
    tl.store(out + (place * count + row)[:, None] * CHANNELS + channel[None, :], total, mask=written)


_SCHEMA = (
    "(Tensor query, Tensor key, Tensor labels, Tensor? own, Tensor? mask, Tensor? index, Tensor? residual, "
    "float scale, bool causal)"
    " -> Tensor"
)


@operator(_SCHEMA)
def attention_labels(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    own: Tensor | None,
    mask: Tensor | None,
    index: Tensor | None,
    residual: Tensor | None,
    scale: float,
    causal: bool,
) -> Tensor:
    """Labels mixed by the mean over heads of softmax(q·kᵀ·scale + mask): (batch, groups, inner, queries, channels).

    Query (batch, groups, inner, heads, n, d) and key (batch, groups, inner, heads or fewer, m, d) of any strides;
    labels (batch, groups, inner, m, channels) float32. ``mask`` is bool or float, (batch, groups, inner, heads, n, m);
    ``index`` (int64) are the queries to compute, None for all. A query that sees no key has its label in ``own``
    (batch, groups, inner, n, channels), and is NaN where that is None. ``residual`` are labels in the shape of the
    result, which is averaged with them.
    """
    batch, groups, inner, heads, tokens, width = query.shape
    count = tokens if index is None else index.shape[0]
    keys, channels = key.shape[-2], labels.shape[-1]
    out = labels.new_empty(batch, groups, inner, count, channels)
    # the interpreter multiplies no bfloat16
    widen = query.dtype != key.dtype or is_interpreted(attention_labels_kernel)
    # tl.dot takes blocks of 16 or more
    wide = max(16, triton.next_power_of_2(width))
    most = most_rows(wide, 4 if widen else query.element_size())
    rows, columns = (max(16, min(most, triton.next_power_of_2(n))) for n in (count, keys))
    with device_of(labels):
        launched(attention_labels_kernel)[(batch * groups * inner * triton.cdiv(count, rows),)](
            # a pointer for every operand: those of the labels are not read
            query, key, labels, *(labels if x is None else x for x in (own, mask, index, residual)), out,
            groups, inner, count, keys, width, scale * _LOG2E.value,
            *query.stride(), *key.stride(), *labels.stride(), *strides(own, 5),
            *strides(residual, 5), *strides(mask, 6),
            HEADS=heads, PER_KEY=heads // key.shape[3], CHANNELS=channels,
            CHANNEL_BLOCK=triton.next_power_of_2(channels), WIDTH_BLOCK=wide, ROWS=rows, COLUMNS=columns,
            WIDEN=widen, CAUSAL=causal, MASK=0 if mask is None else 1 if mask.dtype == torch.bool else 2,
            OWN=own is not None, INDEX=index is not None, RESIDUAL=residual is not None, num_warps=4,
        )  # fmt: skip
    return out


def most_rows(width: int, size: int) -> int:
    """The most queries and keys at a time, of elements of ``size`` bytes: those of wide heads must fit shared memory,
    and products in float32 take long to compile for large blocks."""
    return max(16, min(128 // size, 2**14 // (width * size)))
