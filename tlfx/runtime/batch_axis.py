"""The place of the batch in a tensor: an axis into which windows, heads or channels may be merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["BatchAxis", "merge_batch", "split_batch"]


class BatchAxis(NamedTuple):
    """The batch is on ``axis``, whose length is outer · batch · inner.

    >>> BatchAxis(1, outer=2).split((3, 8, 5))
    [3, 2, 1, 5]
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def split(self, shape: Sequence[int], *batch: int) -> list[int]:
        """A shape in which the batch axis is replaced by (outer, *batch, inner)."""
        return [*shape[: self.axis], self.outer, *batch, self.inner, *shape[self.axis + 1 :]]


def split_batch(x: Tensor, where: BatchAxis) -> Tensor:
    """The batch moved to the front: (batch, *shape) where the batch axis of ``shape`` is replaced by (outer, inner).

    >>> import torch
    >>> split_batch(torch.arange(6).view(3, 2), BatchAxis(1)).shape
    torch.Size([2, 3, 1, 1])
    """
    if where == (0, 1, 1):  # the usual place, by one operation
        return x[:, None, None]
    parts: Tensor = x.unflatten(where.axis, (where.outer, -1, where.inner))
    return parts.movedim(where.axis + 1, 0)


def merge_batch(x: Tensor, where: BatchAxis) -> Tensor:
    """The inverse of :func:`split_batch`."""
    merged: Tensor = x.movedim(0, where.axis + 1)
    return merged.flatten(where.axis, where.axis + 2)
