"""Marks: an operator without effect that a capture puts into the graph where the forward does what torch.export does
not see: it begins or ends a region, changes a mode, or makes a call on a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch.fx import Graph, Node

__all__ = ["Mark", "mark", "marks_of"]


class Mark(NamedTuple):
    """A mark in a graph: what it stands for is known by its kind, its number, and some integers."""

    values: Sequence[Node]
    """The tensors that are given to what it stands for."""
    sizes: Sequence[Any]
    """The sizes that are given: nodes, or numbers that are the same in every call."""
    kind: str
    number: int
    data: Sequence[int]


@torch.library.custom_op(
    "tlfx::mark", mutates_args=(), schema="(Tensor[] values, SymInt[] sizes, str kind, int number, int[] data) -> ()"
)
def _mark(values: Sequence[Tensor], sizes: Sequence[int], kind: str, number: int, data: Sequence[int]) -> None:
    """A place in the graph, and the values there."""


@_mark.register_fake
def _(values: Sequence[Tensor], sizes: Sequence[int], kind: str, number: int, data: Sequence[int]) -> None:
    return None


# otherwise eliminate_dead_code would erase marks, which have no users
torch.fx.node.has_side_effect(torch.ops.tlfx.mark.default)


def mark(kind: str, number: int, given: Sequence[Any] = (), *data: int) -> None:
    """Put a mark into the graph that is captured, with the tensors and symbolic sizes among ``given``."""
    values = [x for x in given if isinstance(x, Tensor)]
    sizes = [x for x in given if isinstance(x, SymInt)]
    torch.ops.tlfx.mark(values, sizes, kind, number, list(map(int, data)))


def marks_of(graph: Graph, *kinds: str) -> dict[Node, Mark]:
    """The marks of some kinds in a graph, in its order."""
    marks = {node: Mark(*node.args) for node in graph.nodes if node.target is torch.ops.tlfx.mark.default}
    return {node: each for node, each in marks.items() if each.kind in kinds}
