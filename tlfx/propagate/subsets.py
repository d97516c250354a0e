"""Branches that run on some samples of the batch: x[index], then index_add, as stochastic depth is written in training
code. What such a branch holds has labels of these samples only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from tlfx.errors import ProvenanceError

if TYPE_CHECKING:
    from tlfx.propagate.state import PropagationState

__all__ = ["SampleSubsets", "is_permutation"]

aten = torch.ops.aten
_JOINS = (aten.index_add.default, aten.index_add_.default)
_ORDERS = (aten.randperm.default, aten.argsort.default, aten.argsort.stable)
_PARTS = (aten.slice.Tensor, aten.narrow.default, aten.detach.default, aten.alias.default, aten._to_copy.default)


class SampleSubsets:
    """The states in which the nodes of such branches are visited, one for each index of samples."""

    def __init__(self) -> None:
        self._states: dict[Node, PropagationState] = {}
        self._by_index: dict[Node, PropagationState] = {}

    def enter(self, node: Node, index: Node, batch: int, state: PropagationState) -> None:
        """Note that a node holds the ``batch`` samples at an index."""
        if index not in self._by_index:
            self._by_index[index] = replace(state, batch=batch, samples=index, contexts=state.contexts.of_batch(batch))
        self._states[node] = self._by_index[index]

    def of(self, node: Node) -> PropagationState | None:
        """The state of a node that holds some samples only; None for all others."""
        return self._states.get(node)

    def visit(self, node: Node, operands: Iterable[Node], state: PropagationState) -> PropagationState:
        """The state in which to visit a node with these operands that depend on the image.

        Raises ProvenanceError for operands of different samples, unless the node adds some to all.
        """
        states = {self._states.get(operand, state) for operand in operands} or {state}
        if len(states) == 1:
            (only,) = states
            if only.samples is not None:
                self._states[node] = only
            return only
        if node.target in _JOINS and state in states:
            return state
        raise ProvenanceError(
            f"{node.name} combines some samples of the batch with others, or with all; labels belong to one sample "
            "each. Add what a branch computes of some samples by index_add, at the index that they were chosen by."
        )

    def check_all(self, outputs: Iterable[Node]) -> None:
        """Raise ProvenanceError for a node that holds some samples only."""
        partial = [node.name for node in outputs if node in self._states]
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
