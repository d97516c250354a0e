"""Labels: the label tensors of an aligned graph, and how each is computed from those before it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

__all__ = ["MASK", "Label", "LabelTable", "Once", "Rows", "by_first_occurrence", "digest", "regular"]

MASK = "mask"
"""Stands for the mask of the images among a label's arguments, and names it in the aligned graph."""


@dataclass(frozen=True, eq=False)
class Rows:
    """An operand of a label: rows picked from the labels before it, in the shape of ``ids`` (without the batch)."""

    ids: Tensor


@dataclass(frozen=True, eq=False)
class Once:
    """An argument of a label: a function of a parameter, computed once however many labels read it."""

    function: Callable[..., Tensor]
    node: Node
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Label:
    """A label tensor Y of shape (batch, rows, channels): one call of a function of :mod:`tlfx.runtime`.

    ``shape`` multiplies to the number of rows. An ``elementwise`` label has rows that each depend on the same row of
    its operands; one with a ``query_axis`` can be computed for some queries alone. Both let unread rows go uncomputed.
    """

    first: int
    shape: tuple[int, ...]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    after: Node | None = None
    elementwise: bool = False
    query_axis: int | None = None
    instead: bool = False
    """Whether the function returns (value, label) and takes the place of the node ``after``."""
    by_sample: bool = False
    """Whether the function pairs labels with values that differ from sample to sample, even if they are constants."""
    kept: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of rows before any was dropped."""
        return int(torch.Size(self.shape).numel())

    @property
    def count(self) -> int:
        """Number of rows that are computed."""
        return self.size if self.kept is None else int(self.kept.sum())

    @property
    def nodes(self) -> list[Node]:
        """The values of the graph among the arguments."""
        leaves = (a.node if isinstance(a, Once) else a for a in tree_leaves((self.args, self.kwargs)))
        return [a for a in leaves if isinstance(a, Node)]

    @property
    def operands(self) -> list[Rows]:
        """The row operands, in order."""
        return [a for a in self.args if isinstance(a, Rows)]

    def restricted(self, needed: Tensor) -> Label:
        """The label computed for the ``needed`` rows (bool, one for each row), or for as few more as it can."""
        if bool(needed.all()):
            return self
        if self.elementwise:
            args = tuple(self._elements(a, needed) for a in self.args)
            return replace(self, args=args, kept=needed)
        if self.query_axis is None:
            return self
        return self._with_queries(needed)

    def _elements(self, arg: Any, needed: Tensor) -> Any:
        """The part of an argument, rows or a tensor with one entry for each row, that the ``needed`` rows depend on."""
        if isinstance(arg, Rows):
            return Rows(arg.ids.flatten(0, len(self.shape) - 1)[needed])
        return arg[needed] if isinstance(arg, Tensor) else arg

    def _with_queries(self, needed: Tensor) -> Label:
        assert self.query_axis is not None
        by_query = needed.view(self.shape).movedim(self.query_axis, 0).reshape(self.shape[self.query_axis], -1).any(1)
        if bool(by_query.all()):
            return self
        along = [1] * len(self.shape)
        along[self.query_axis] = -1
        kept = by_query.view(along).expand(self.shape).flatten()
        queries = tuple(by_query.nonzero().flatten().tolist())
        return replace(self, kwargs={**self.kwargs, "queries": queries}, kept=kept)

    def position(self) -> Tensor:
        """Place of each row in the computed tensor, -1 for rows that are dropped."""
        if self.kept is None:
            return torch.arange(self.size)
        return torch.where(self.kept, self.kept.cumsum(0) - 1, -1)


class LabelTable:
    """All labels of a graph in the order of their making; rows are numbered across them."""

    def __init__(self) -> None:
        self.labels: list[Label] = []
        self.rows = 0

    def add(self, function: Callable[..., Any], *args: Any, shape: tuple[int, ...], **options: Any) -> Tensor:
        """Append a label and return the numbers of its rows, an int64 tensor of ``shape``."""
        label = Label(self.rows, shape, function, args, **options)
        self.labels.append(label)
        self.rows += label.size
        return torch.arange(label.first, self.rows).view(shape)

    def owners(self, ids: Tensor) -> Tensor:
        """Index of the label that each row number belongs to."""
        starts = torch.tensor([label.first for label in self.labels])
        return torch.bucketize(ids.contiguous(), starts, right=True) - 1


def by_first_occurrence(groups: Tensor, count: int) -> Tensor:
    """The numbers 0 … ``count`` - 1 that ``groups`` (int64, one axis) holds, in the order in which each comes first.

    >>> by_first_occurrence(torch.tensor([2, 0, 2, 1]), 3)
    tensor([2, 0, 1])
    """
    first = torch.full((count,), len(groups)).scatter_reduce(0, groups, torch.arange(len(groups)), "amin")
    return first.argsort()


def regular(index: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The sizes and steps of nested loops that visit the elements of an index (int64) in order, no step backwards; None
    if there are none.

    Axes of windows, in which several loops are merged, come apart:

    >>> regular(torch.arange(12).view(3, 4)[:, 1:3])
    ((3, 2), (4, 1))
    >>> regular(torch.tensor([0, 1, 4, 5, 8, 9]))
    ((3, 2), (4, 1))
    >>> regular(torch.tensor([0, 1, 3])) is None
    True
    """
    first = index.flatten()[0]
    along = [index.movedim(a, 0).reshape(size, -1)[:, 0] - first for a, size in enumerate(index.shape)]
    places = first
    for offsets in along:
        places = places[..., None] + offsets
    loops = [_loops(offsets.tolist()) for offsets in along]
    if any(found is None for found in loops) or not torch.equal(index, places):
        return None
    pairs = [pair for found in loops for pair in found or []]
    return tuple(size for size, _ in pairs), tuple(step for _, step in pairs)


def _loops(offsets: list[int]) -> list[tuple[int, int]] | None:
    """Sizes and steps of nested loops, the outermost first, that give a list of offsets from 0 on."""
    count = len(offsets)
    if count == 1:
        return []
    step = offsets[1]
    if step < 0:  # PyTorch has no views backwards
        return None
    size = next((n for n in range(2, count) if offsets[n] != n * step), count)
    if size == count:
        return [(count, step)]
    outer = offsets[::size]
    if count % size or offsets != [start + n * step for start in outer for n in range(size)]:
        return None
    rest = _loops(outer)
    return None if rest is None else [*rest, (size, step)]


def digest(tensor: Tensor) -> Hashable:
    """What tells a tensor on the CPU from all that differ in type, shape or elements."""
    return tensor.dtype, tensor.shape, hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()
