"""Labels at the start and at the end, rows picked from them, and rows averaged one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlfx.runtime.arithmetic import label_arithmetic, merge_batch

__all__ = ["average", "gather", "output", "pixels", "scan", "share", "spread", "uniform", "view"]


@label_arithmetic
def pixels(mask: Tensor, images: Tensor) -> Tensor:
    """Start (eq. 5): one row for each pixel, from a mask (batch or 1, channels, *size) of shares; one for all samples
    if they share a mask."""
    missing = images.dim() - mask.dim()
    mask = mask.float().reshape(*mask.shape[:2], *[1] * missing, *mask.shape[2:])
    return mask.expand(-1, -1, *images.shape[2:]).flatten(2).transpose(1, 2)


@label_arithmetic
def share(mask: Tensor, images: Tensor) -> Tensor:
    """The image-level share λ, one row: the label of tokens without image content (eq. 5)."""
    return pixels(mask, images).mean(1, keepdim=True)


@label_arithmetic
def spread(rows: Tensor, images: Tensor) -> Tensor:
    """Labels of a mask that all samples share, for each of them."""
    return rows.expand(images.shape[0], -1, -1)


@label_arithmetic
def view(label: Tensor, sizes: Sequence[int], steps: Sequence[int], first: int, shape: Sequence[int]) -> Tensor:
    """Rows of a label that nested loops of ``sizes`` and ``steps`` visit from the ``first`` on, in a shape: a view, or
    a copy without an index where axes of windows are merged."""
    batch, row, channel = label.stride()
    strides = (batch, *(step * row for step in steps), channel)
    found = (label[:, first:] if first else label).as_strided((len(label), *sizes, label.shape[-1]), strides)
    return found.reshape(len(label), *shape, label.shape[-1])


@label_arithmetic
def gather(labels: Sequence[Tensor], index: Tensor | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """Rows of one or several labels, all or those at ``index``, in a shape."""
    label = labels[0] if len(labels) == 1 else torch.cat(tuple(labels), 1)
    if index is not None:
        return label[:, index]
    return label if shape is None else label.reshape(label.shape[0], *shape, label.shape[-1])


@label_arithmetic
def average(one: Tensor, other: Tensor) -> Tensor:
    """Residual connection, Y ← Norm(Y + g(Y)) (eq. 11), and products of two full values."""
    return (one + other) / 2


@label_arithmetic
def uniform(rows: Tensor, counts: Tensor | None = None) -> Tensor:
    """Aggregation, Y ← Norm(Σ Yᵢ): rows (batch, out, in, channels) averaged over ``in``, weighted by how often each
    occurs (``counts``, of shape (in,) or (out, in))."""
    if counts is None:
        return rows.mean(2)
    weights = counts / counts.sum(-1, keepdim=True)
    return (rows * weights[..., None]).sum(2)


@label_arithmetic
def scan(rows: Tensor) -> Tensor:
    """A recurrence: rows (batch, lead, steps, channels), each step uniform over the steps up to it."""
    steps = torch.arange(1, rows.shape[2] + 1, device=rows.device, dtype=rows.dtype)
    return (rows.cumsum(2) / steps[:, None]).flatten(1, 2)


@label_arithmetic
def output(rows: Tensor, axis: int, outer: int, inner: int) -> Tensor:
    """Labels of an output, its batch merged back to where the output has it; channels stay last."""
    return merge_batch(rows, (axis, outer, inner))
