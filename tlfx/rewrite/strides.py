"""Strides: which indices a view can read, so that no index tensor is needed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["find_strides"]


def find_strides(index: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The sizes and strides of a view that reads the elements of an index (int64) in order; None if there is none.

    Merged axes, such as those of windows, are split:

    >>> find_strides(torch.arange(12).view(3, 4)[:, 1:3])
    ((3, 2), (4, 1))
    >>> find_strides(torch.tensor([0, 1, 4, 5, 8, 9]))
    ((3, 2), (4, 1))
    >>> find_strides(torch.tensor([0, 1, 3])) is None
    True
    """
    first = index.flatten()[0]
    by_axis = [index.movedim(a, 0).reshape(size, -1)[:, 0] - first for a, size in enumerate(index.shape)]
    places = first
    for offsets in by_axis:
        places = places[..., None] + offsets
    axes = [_strides_of(offsets.tolist()) for offsets in by_axis]
    if any(axis is None for axis in axes) or not torch.equal(index, places):
        return None
    pairs = [pair for axis in axes for pair in axis or []]
    return tuple(size for size, _ in pairs), tuple(stride for _, stride in pairs)


def _strides_of(offsets: list[int]) -> list[tuple[int, int]] | None:
    """Sizes and strides, the outermost first, of axes that merge to one with these offsets; the first offset is 0."""
    count = len(offsets)
    if count == 1:
        return []
    stride = offsets[1]
    if stride < 0:  # PyTorch has no views with negative strides
        return None
    # the innermost axis ends where the offset breaks the stride
    size = next((n for n in range(2, count) if offsets[n] != n * stride), count)
    if size == count:
        return [(count, stride)]
    outer = offsets[::size]
    if count % size or offsets != [start + n * stride for start in outer for n in range(size)]:
        return None
    rest = _strides_of(outer)
    return None if rest is None else [*rest, (size, stride)]
