"""Branches that run on some samples of the batch: x[index], then index_add, as stochastic depth is written in training
code. What such a branch holds has labels of these samples only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node

from tlfx.errors import ProvenanceError
from tlfx.propagate.contexts import LinearContexts

__all__ = ["SampleSubsets", "Subset", "is_permutation"]

aten = torch.ops.aten
_JOINS = (aten.index_add.default, aten.index_add_.default)
_ORDERS = (aten.randperm.default, aten.argsort.default, aten.argsort.stable)
_PARTS = (aten.slice.Tensor, aten.narrow.default, aten.detach.default, aten.alias.default, aten._to_copy.default)


@dataclass(frozen=True, eq=False)
class Subset:
    """Samples of the batch, by the node of their index, how many there are, and the contexts in their layout."""

    index: Node
    batch: int
    contexts: LinearContexts


class SampleSubsets:
    """The nodes of such branches, and the samples that they hold."""

    def __init__(self) -> None:
        self._by_node: dict[Node, Subset] = {}
        self._by_index: dict[Node, Subset] = {}

    def enter(self, node: Node, index: Node, batch: int, contexts: LinearContexts) -> None:
        """Note that a node holds the ``batch`` samples at an index."""
        if index not in self._by_index:
            self._by_index[index] = Subset(index, batch, contexts.of_batch(batch))
        self._by_node[node] = self._by_index[index]

    def of(self, node: Node) -> Subset | None:
        """The samples that a node holds; None for all."""
        return self._by_node.get(node)

    def visit(self, node: Node, operands: Iterable[Node]) -> Subset | None:
        """The samples that a node sees, with these operands that depend on the image.

        Raises ProvenanceError for operands of different samples, unless the node adds some to all.
        """
        # no operand depends on the image where a constant is written into content
        subsets = {self.of(operand) for operand in operands} or {None}
        if len(subsets) == 1:
            (only,) = subsets
            if only is not None:
                self._by_node[node] = only
            return only
        if node.target in _JOINS and None in subsets:
            return None
        raise ProvenanceError(
            f"{node.name} combines some samples of the batch with others, or with all; labels belong to one sample "
            "each. Add what a branch computes of some samples by index_add, at the index that they were chosen by."
        )

    def check_all(self, outputs: Iterable[Node]) -> None:
        """Raise ProvenanceError for a node that holds some samples only."""
        partial = [node.name for node in outputs if node in self._by_node]
        if partial:
            raise ProvenanceError(
                f"{', '.join(partial)} holds some samples of the batch only, so that its labels do not fit the target. "
                "Return all samples, or align the part of the model before it instead."
            )


def is_permutation(index: Node) -> bool:
    """Whether an index holds each sample once at most: an order that is drawn at random, or a part of one."""
    while index.target in _PARTS:
        index = index.all_input_nodes[0]
    return index.target in _ORDERS
