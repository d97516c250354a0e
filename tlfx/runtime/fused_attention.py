"""Attention and its labels in one pass: labels are extra columns of the value in the model's fused attention, which
costs a fraction of computing the weights a second time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from tlfx._torch import flash_attention, flash_attention_backward, fused_attention_choice
from tlfx.runtime.arithmetic import label_arithmetic
from tlfx.runtime.batch_axis import BatchAxis, merge_batch, split_batch
from tlfx.runtime.equation import Equation, select
from tlfx.runtime.softmax_attention import attention, attention_bias

__all__ = ["attention_with_labels"]

_FLASH = SDPBackend.FLASH_ATTENTION.value
_MOST_COLUMNS = 0.25
"""Largest ratio of label channels to value channels; above it a second pass is cheaper."""

_FEW_QUERIES = 0.125
"""Largest share of queries whose labels are read for which a second pass is cheaper."""
_FEW_WEIGHTS = 2**18
"""Most weights (batch · heads · queries · keys) for which a second pass is cheaper than copies of query, key and value:
1 MiB, which a CPU cache holds."""
_BLOCK = 32
"""The kernel processes queries in blocks whose sizes are multiples of this."""
_VECTOR = 4
"""Columns in 16 bytes: if the value has a multiple of this, long products round as they do without columns."""

_flash, _flash_backward = flash_attention(), flash_attention_backward()
_MOST_SHAPES = 1024
_fitting: dict[Hashable, int] = {}
"""Columns to add for each combination of shapes that was tried; the oldest entry is evicted after ``_MOST_SHAPES``."""


def attention_with_labels(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    labels: Tensor,
    equation: Equation,
    where: BatchAxis,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
    queries: Sequence[int] | Tensor | None = None,
    any_size: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (batch, heads, n, d), bit for bit the operator's output, and its labels, those of
    :func:`attention`, for labels (batch, outer, inner, m, channels).

    One pass computes both where the operator would use its fused CPU kernel in float32, and where that kernel gives the
    same bits with the columns (or with columns and zeros) as without. Its rounding depends on shapes and strides, not
    on values, so each combination is tried once. Otherwise, and for few ``queries``, labels take a second pass.
    """
    options: dict[str, Any] = {"attn_mask": mask, "is_causal": causal, "scale": scale}
    few = queries is not None and len(queries) <= _FEW_QUERIES * query.shape[-2]
    small = not any_size and query.shape[:-1].numel() * key.shape[-2] <= _FEW_WEIGHTS
    if not few and not small and _is_flash(query, key, value, labels, dropout, grouped, options):
        options["attn_mask"] = attention_bias(query, key, mask)
        columns = _columns(labels, where, key)
        added = _fit(query, key, value, columns, options)
        if added:
            output, label = _Joint.apply(query, key, value, columns, added, options)
            return output, _labels(label, where, queries)
    output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, enable_gqa=grouped, **options)
    label = attention(query, key, labels, equation, where=where, mask=mask, causal=causal, scale=scale, queries=queries)
    return output, label


def _is_flash(
    query: Tensor, key: Tensor, value: Tensor, labels: Tensor, dropout: float, grouped: bool, options: dict[str, Any]
) -> bool:
    """Whether the operator uses the kernel that can carry labels, and label channels are few enough."""
    if query.device.type != "cpu" or query.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if (
        grouped
        or query.dim() != 4
        or torch.compiler.is_compiling()
        or labels.shape[-1] > _MOST_COLUMNS * value.shape[-1]
    ):
        return False
    return bool(fused_attention_choice(query, key, value, dropout_p=dropout, **options) == _FLASH)


@label_arithmetic
def _columns(labels: Tensor, where: BatchAxis, key: Tensor) -> Tensor:
    """Labels as columns of the value: (batch, heads, m, channels)."""
    return merge_batch(labels, where).unsqueeze(1).expand(-1, key.shape[1], -1, -1)


@label_arithmetic
def _labels(label: Tensor, where: BatchAxis, queries: Sequence[int] | Tensor | None) -> Tensor:
    """The mean over heads of (batch, heads, n, channels) at the queries that are read, as labels of each sample."""
    if queries is not None:
        label = select(label, -2, queries)
    label = label.transpose(1, 2).contiguous().mean(2)  # a mean over the strided columns would be slower than this copy
    return split_batch(label, where).flatten(1, -2)


def _fit(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, options: dict[str, Any]) -> int:
    """The number of columns to add so that the kernel gives the same bits as without, 0 if there is none; tried once
    for each combination of shapes."""
    tensors = [t for t in (query, key, value, columns, options["attn_mask"]) if t is not None]
    # the order of sums, and so rounding, follows the memory layout and the number of threads
    layout = tuple((t.shape, t.stride(), t.data_ptr() % 64) for t in tensors[:3])
    rest = tuple(t.shape for t in tensors[3:])
    place = (layout, rest, options["is_causal"], options["scale"], torch.get_num_threads())
    if place not in _fitting:
        channels = columns.shape[-1]
        # no added zeros, then zeros up to a multiple of 16 bytes
        tried = (channels, -(-channels // _VECTOR) * _VECTOR)
        if len(_fitting) >= _MOST_SHAPES:
            del _fitting[next(iter(_fitting))]
        _fitting[place] = next((n for n in tried if _keeps_bits(query, key, value, columns, n, options)), 0)
    return _fitting[place]


@torch.no_grad()
def _keeps_bits(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, added: int, options: dict[str, Any]
) -> bool:
    """Whether the kernel gives the same bits with added columns as without."""
    plain = _flash(query, key, value, 0.0, **options)
    joint = _forward(query, key, value, columns, added, options)
    return torch.equal(plain[0], joint[0]) and torch.equal(plain[1], joint[1])


def _forward(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, added: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp and labels (batch, heads, n, channels). The kernel requires queries and keys as wide as
    values; zeros widen them without changing their products."""
    width = value.shape[-1]
    options = {**options, "scale": query.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]}
    # zeros change no product of query and key; the columns of labels follow those of the value
    wide = (_widened(query, added), _widened(key, added), _widened(value, added, columns))
    both, weight = _flash(*wide, 0.0, **options)
    output = both[..., :width].transpose(1, 2).contiguous().transpose(1, 2)  # the layout of the kernel's output
    if query.shape[-2] % _BLOCK == 1 and not options["is_causal"]:
        # a last block of one query is a matrix-vector product, whose rounding depends on the width of the value
        output[:, :, -1:], weight[..., -1:] = _last(query, key, value, options)
    return output, weight, both[..., width : width + columns.shape[-1]]


def _last(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the last query. A whole block before it keeps its position in the full pass, on which
    rounding depends too."""
    last = slice(-_BLOCK - 1, None)
    mask = options["attn_mask"]
    options = {**options, "attn_mask": mask if mask is None or mask.shape[-2] == 1 else mask[..., last, :]}
    output, weight = _flash(query[:, :, last], key, value, 0.0, **options)
    return output[:, :, -1:], weight[..., -1:]


def _widened(tensor: Tensor, added: int, columns: Tensor | None = None) -> Tensor:
    """A tensor (batch, heads, tokens, channels) with columns and zeros appended, in the memory layout of a
    projection."""
    batch, heads, tokens, width = tensor.shape
    given = [tensor] if columns is None else [tensor, columns]
    blank = width + added - sum(x.shape[-1] for x in given)
    parts = [*given, tensor.new_zeros(()).expand(batch, heads, tokens, blank)]
    wide = tensor.new_empty(batch, tokens, heads, width + added)
    torch.cat([x.transpose(1, 2) for x in parts], -1, out=wide)
    return wide.transpose(1, 2)


class _Joint(torch.autograd.Function):
    """Fused attention with labels as extra columns; its backward is that of the kernel on the original tensors."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, columns: Tensor, added: int, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        output, weight, label = _forward(query, key, value, columns, added, options)
        ctx.save_for_backward(query, key, value, output, weight)
        ctx.options = options
        ctx.mark_non_differentiable(label)
        return output, label

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, weight = ctx.saved_tensors
        # the backward takes causality by position
        options = {k: v for k, v in ctx.options.items() if k != "is_causal"}
        own = _flash_backward(gradients[0], query, key, value, output, weight, 0.0, ctx.options["is_causal"], **options)
        # none for columns, added and options: labels have no gradient (eq. 12)
        return (*own, None, None, None)
