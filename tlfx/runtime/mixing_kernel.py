"""Labels mixed by weights that the graph computes, in one Triton kernel that reads each weight once.

A program computes up to 32 queries of one sample. It sums |W| over heads, block by block of keys, and multiplies it by
their labels. Weights and labels are read in place, by their strides and in their type.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from tlfx.runtime.arithmetic import TINY
from tlfx.runtime.kernels import device_of, launched, operator, strides

__all__ = ["mix_labels", "mix_labels_kernel"]

_TINY = tl.constexpr(TINY)
_ROWS, _COLUMNS = 32, 128
"""The most queries and keys at a time."""


@triton.jit
def mix_labels_kernel(
    weight, labels, own, residual, out,
    groups, inner, count, keys,
    w_batch, w_group, w_inner, w_head, w_row, w_column,
    y_batch, y_group, y_inner, y_row, y_channel,
    o_batch, o_group, o_inner, o_row, o_channel,
    r_batch, r_group, r_inner, r_row, r_channel,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, CHANNEL_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, OWN: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Labels of a block of queries at one place (batch, group, inner); pointers, sizes, strides, then what is compiled
    in. ``SIZE`` is 0 for weights whose rows sum to 1, 1 for |W| and 2 for max(W, 0), which are divided by their sum."""
    # programs count blocks of queries first, then places
    blocks = tl.cdiv(count, ROWS)
    place = (tl.program_id(0) // blocks).to(tl.int64)
    batch, group, within = place // inner // groups, place // inner % groups, place % inner
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    column, channel = tl.arange(0, COLUMNS), tl.arange(0, CHANNEL_BLOCK)
    in_rows, at = row < count, row.to(tl.int64)  # offsets may exceed 32 bits
    weight += batch * w_batch + group * w_group + within * w_inner
    labels += batch * y_batch + group * y_group + within * y_inner

    mass = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, CHANNEL_BLOCK), tl.float32)
    for start in range(0, keys, COLUMNS):
        to = (start + column).to(tl.int64)
        in_keys = to < keys
        inside = in_rows[:, None] & in_keys[None, :]
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for head in range(HEADS):
            of_head = weight + tl.cast(head, tl.int64) * w_head
            w = tl.load(of_head + at[:, None] * w_row + to[None, :] * w_column, mask=inside, other=0.0).to(tl.float32)
            if SIZE == 1:
                w = tl.abs(w)
            elif SIZE == 2:
                w = tl.maximum(w, 0.0)
            if SIZE > 0 and not OWN:  # uniform where all are zero
                w = tl.where(inside, w + _TINY, 0.0)
            total += w
        # total: |W| summed over heads, (ROWS, COLUMNS)
        mass += tl.sum(total, 1)
        # tl.dot multiplies at least 16 columns, more than labels have channels
        for c in tl.static_range(CHANNELS):
            label = tl.load(labels + to * y_row + c * y_channel, mask=in_keys, other=0.0)
            mixed += tl.where((channel == c)[None, :], tl.sum(total * label[None, :], 1)[:, None], 0.0)
    written = in_rows[:, None] & (channel < CHANNELS)[None, :]
    if SIZE == 0:
        mixed = mixed / HEADS
    elif OWN:
        of_own = own + batch * o_batch + group * o_group + within * o_inner
        kept = tl.load(of_own + at[:, None] * o_row + channel[None, :] * o_channel, mask=written, other=0.0)
        # ``own`` decides only where all weights are zero
        mixed = (mixed + kept * _TINY) / (mass + _TINY)[:, None]
    else:
        mixed = mixed / tl.where(in_rows, mass, 1.0)[:, None]
    if RESIDUAL:
        skip = residual + batch * r_batch + group * r_group + within * r_inner
        skipped = tl.load(skip + at[:, None] * r_row + channel[None, :] * r_channel, mask=written, other=0.0)
        mixed = (mixed + skipped) * 0.5
    tl.store(out + (place * count + row)[:, None] * CHANNELS + channel[None, :], mixed, mask=written)


_SCHEMA = "(Tensor weight, Tensor labels, Tensor? own, Tensor? residual, int size) -> Tensor"


@operator(_SCHEMA)
def mix_labels(weight: Tensor, labels: Tensor, own: Tensor | None, residual: Tensor | None, size: int) -> Tensor:
    """Labels mixed by weights, (batch, groups, inner, queries, channels), float32.

    Weight (batch, groups, inner, heads, n, m) and labels (batch, groups, inner, m, channels) float32, both of any
    strides. ``size`` is 0 for weights whose rows sum to 1, which are averaged over heads; 1 for |W| and 2 for
    max(W, 0), divided by their sum. A query whose weights are all zero has its label in ``own`` (batch, groups,
    inner, n, channels), and the mean of ``labels`` where that is None. ``residual`` are labels in the shape of
    the result, which is averaged with them.
    """
    batch, groups, inner, heads, count, keys = weight.shape
    channels = labels.shape[-1]
    out = labels.new_empty(batch, groups, inner, count, channels)
    rows, columns = (min(most, triton.next_power_of_2(n)) for most, n in ((_ROWS, count), (_COLUMNS, keys)))
    with device_of(labels):
        launched(mix_labels_kernel)[(batch * groups * inner * triton.cdiv(count, rows),)](
            # a pointer for every operand: those of the labels are not read
            weight, labels, *(labels if x is None else x for x in (own, residual)), out, groups, inner, count, keys,
            *weight.stride(), *labels.stride(), *strides(own, 5), *strides(residual, 5),
            HEADS=heads, CHANNELS=channels, CHANNEL_BLOCK=triton.next_power_of_2(channels), ROWS=rows, COLUMNS=columns,
            SIZE=size, OWN=own is not None, RESIDUAL=residual is not None, num_warps=4,
        )  # fmt: skip
    return out
