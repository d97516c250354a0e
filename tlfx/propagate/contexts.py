"""Contexts kᵀv of linear attention: tokens contracted before their queries are known."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.operations import Operation
from tlfx.propagate.values import Role, Value

__all__ = ["LinearContexts"]


class LinearContexts:
    """The label ids of all contexts, and the ids that they have where a context is used as content by itself."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._finalized: list[tuple[int, Tensor]] = []
        self._weights: list[Node] = []

    def of_batch(self, batch: int) -> LinearContexts:
        """The same contexts in maps of another number of samples."""
        same = copy(self)
        same._batch = batch
        return same

    def finalize(self, ids: Tensor, finalized: Tensor) -> None:
        """Register the ids (out, heads) of a context and the ids (out,) that it has as content."""
        # a context is one label tensor, whose ids are consecutive
        first = int(ids.min())
        by_id = torch.empty(ids.numel(), dtype=torch.int64)
        by_id[ids - first] = finalized[:, None].expand_as(ids)
        self._finalized.append((first, by_id))

    def resolve(self, content: Tensor) -> Tensor:
        """A map in which the ids of contexts are replaced by those that they have as content."""
        ids = content.div(self._batch, rounding_mode="floor")
        for first, by_id in self._finalized:
            inside = (ids >= first) & (ids < first + len(by_id))
            if bool(inside.any()):
                # the clamp keeps ids of other labels in range; torch.where drops them
                new = by_id[(ids - first).clamp(0, len(by_id) - 1)] * self._batch + content % self._batch
                content = torch.where(inside, new, content)
        return content

    def reclassify(self, node: Node) -> None:
        """Note that a context is a mixing weight after all: a softmax follows it (channel attention)."""
        self._weights.append(node)

    def reclassified(self, values: Mapping[Node, Any]) -> dict[Node, Operation]:
        """The operations of those contexts and of the nodes that computed them, for a pass after propagation."""
        weights: dict[Node, Operation] = {}
        waiting = list(self._weights)
        while waiting:
            node = waiting.pop()
            value = values.get(node)
            if node not in weights and isinstance(value, Value) and value.role is Role.CONTEXT:
                weights[node] = Operation.WEIGHT
                # the product kᵀv was recorded as spatial mixing, before the softmax was known
                waiting.extend(node.all_input_nodes)
        return weights
