"""The label tensors of an aligned graph, and how each is computed from those before it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx._torch import tree_leaves

__all__ = ["MASK", "LabelTable", "LabelTensor", "NodeFunction", "Operand", "by_first_occurrence", "digest"]

MASK = "mask"
"""Stands for the mask of the images among the arguments of a label tensor, and names it in the aligned graph."""


@dataclass(frozen=True, eq=False)
class Operand:
    """An operand of a label tensor: the labels with these ids, in the shape of ``ids`` (without the batch)."""

    ids: Tensor
    samples: Node | None = None
    """The index of the samples whose labels are read, if the label tensor that reads them has labels of all."""


@dataclass(frozen=True, eq=False)
class NodeFunction:
    """An argument of a label tensor: a function of a node, computed once however many label tensors read it."""

    function: Callable[..., Tensor]
    node: Node
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LabelTensor:
    """A label tensor Y of shape (batch, labels, channels): one call of a function of :mod:`tlfx.runtime`.

    ``shape`` multiplies to the number of labels. Each label of an ``elementwise`` tensor depends on the same place of
    its operands; a tensor with a ``query_axis`` can be computed for some queries alone. Both allow labels that nothing
    reads to be left out.
    """

    first: int
    shape: tuple[int, ...]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    after: Node | None = None
    elementwise: bool = False
    same_places: bool = False
    """Whether each label depends on the labels at its place of the operand alone, along axes of size 1 on all."""
    query_axis: int | None = None
    replaces_node: bool = False
    """Whether the function returns (value, labels) and replaces the node ``after``."""
    by_sample: bool = False
    """Whether the function pairs labels with values that differ from sample to sample, even if they are constants."""
    samples: Node | None = None
    """The index of the samples that it has labels of; None for all."""
    kept: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of labels before any was dropped."""
        return int(torch.Size(self.shape).numel())

    @property
    def count(self) -> int:
        """Number of labels that are computed."""
        return self.size if self.kept is None else int(self.kept.sum())

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the graph among the arguments."""
        leaves = (
            a.node if isinstance(a, NodeFunction) else a for a in tree_leaves((self.args, self.kwargs, self.samples))
        )
        return [a for a in leaves if isinstance(a, Node)]

    @property
    def operands(self) -> list[Operand]:
        """The operands that are labels, in order."""
        return [a for a in self.args if isinstance(a, Operand)]

    def restricted(self, needed: Tensor) -> LabelTensor:
        """The tensor with only the ``needed`` labels (bool, one for each), or as few more as it allows."""
        if bool(needed.all()):
            return self
        if self.elementwise:
            args = tuple(self._elements(a, needed) for a in self.args)
            return replace(self, args=args, kept=needed)
        if self.query_axis is None:
            return self
        return self._with_queries(needed)

    def _elements(self, arg: Any, needed: Tensor) -> Any:
        """The part of an argument that ``needed`` labels read; a tensor among them has one entry for each label."""
        if isinstance(arg, Operand):
            return replace(arg, ids=arg.ids.flatten(0, len(self.shape) - 1)[needed])
        return arg[needed] if isinstance(arg, Tensor) else arg

    def _with_queries(self, needed: Tensor) -> LabelTensor:
        assert self.query_axis is not None
        # (queries): whether any label of a query is needed
        by_query = needed.view(self.shape).movedim(self.query_axis, 0).reshape(self.shape[self.query_axis], -1).any(1)
        if bool(by_query.all()):
            return self
        along = [1] * len(self.shape)
        along[self.query_axis] = -1
        kept = by_query.view(along).expand(self.shape).flatten()
        queries = tuple(by_query.nonzero().flatten().tolist())
        return replace(self, kwargs={**self.kwargs, "queries": queries}, kept=kept)

    def position(self) -> Tensor:
        """Place of each label in the computed tensor, -1 for labels that are dropped."""
        if self.kept is None:
            return torch.arange(self.size)
        return torch.where(self.kept, self.kept.cumsum(0) - 1, -1)


class LabelTable:
    """All label tensors of a graph in the order of their computation; label ids count across them."""

    def __init__(self) -> None:
        self.tensors: list[LabelTensor] = []
        self.size = 0
        """Number of label ids."""

    def add(self, function: Callable[..., Any], *args: Any, shape: tuple[int, ...], **options: Any) -> Tensor:
        """Append a label tensor and return its label ids, an int64 tensor of ``shape``."""
        tensor = LabelTensor(self.size, shape, function, args, **options)
        self.tensors.append(tensor)
        self.size += tensor.size
        return torch.arange(tensor.first, self.size).view(shape)

    def owners(self, ids: Tensor) -> Tensor:
        """Index of the label tensor that each label id belongs to."""
        starts = torch.tensor([tensor.first for tensor in self.tensors])
        return torch.bucketize(ids.contiguous(), starts, right=True) - 1

    def are_parts(self, parts: Tensor, wholes: Tensor) -> bool:
        """Whether the label with each id of ``wholes`` is that of ``parts`` at the same place, or computed from it."""
        pairs = torch.stack((parts.flatten(), wholes.flatten()))
        pairs = pairs[:, pairs[0] != pairs[1]]
        for whole in pairs[1].unique():
            own = pairs[0, pairs[1] == whole]
            if not bool(torch.isin(own, self._sources(whole, int(own.min()))).all()):
                return False
        return True

    def _sources(self, label: Tensor, first: int) -> Tensor:
        """The ids, from ``first`` on, of the labels that a label is computed from, one after another."""
        reached = new = label.view(1)
        while len(new):
            owners = self.owners(new)
            read = [self._read_by(self.tensors[int(p)], new[owners == p]) for p in owners.unique()]
            new = torch.cat(read).unique()
            # labels are computed from labels with lower ids: below the first that is asked for, none is found
            new = new[(new >= first) & ~torch.isin(new, reached)]
            reached = torch.cat((reached, new))
        return reached

    def _read_by(self, tensor: LabelTensor, ids: Tensor) -> Tensor:
        """The ids of the operands that labels of a tensor are computed from."""
        needed = torch.zeros(tensor.size, dtype=torch.bool)
        needed[ids - tensor.first] = True
        operands = [operand.ids for operand in tensor.operands]
        if tensor.elementwise:
            operands = [operand.ids for operand in tensor.restricted(needed).operands]
        elif tensor.same_places:
            operands = [read[needed.view(tensor.shape).expand(read.shape)] for read in operands]
        # labels of the mask have no operands, and torch.cat takes no empty list
        return torch.cat([*(read.flatten() for read in operands), ids[:0]])


def by_first_occurrence(groups: Tensor, count: int) -> Tensor:
    """The numbers 0 … ``count`` - 1 in ``groups`` (int64, one axis), in the order of their first occurrence.

    >>> by_first_occurrence(torch.tensor([2, 0, 2, 1]), 3)
    tensor([2, 0, 1])
    """
    first = torch.full((count,), len(groups)).scatter_reduce(0, groups, torch.arange(len(groups)), "amin")
    return first.argsort()


def digest(tensor: Tensor) -> Hashable:
    """A key of a CPU tensor: equal for tensors of equal type, shape and elements."""
    return tensor.dtype, tensor.shape, hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()
