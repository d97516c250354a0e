"""Gates: constants that a branch is multiplied with before it is summed, such as LayerScale and stochastic depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.fx import Node

from tlfx.provenance import BatchAxis, Value
from tlfx.taxonomy import Operation

__all__ = ["Gates"]


class Gates:
    """Products of content and a constant, by their node."""

    def __init__(self, values: Mapping[Node, Any], operations: Mapping[Node, Operation]) -> None:
        self._values = values
        self._operations = operations
        self._factors: dict[Node, tuple[Node, Any]] = {}

    def note(self, product: Node, content: Node, factor: Any) -> None:
        """Note a product; the factor is a node, or a number."""
        self._factors[product] = (content, factor)

    def of(self, node: Node) -> Iterator[tuple[Any, int, tuple[int, int, int]]]:
        """The gates of a summand, the last one first: what it was multiplied with since anything but data movement was
        done to it. Each is a factor, the rank of the product, and where that has its batch, (axis, outer, inner)."""
        while True:
            if node in self._factors:
                value = self._values[node]
                where: BatchAxis = value.batch_axis
                node, factor = self._factors[node]
                yield factor, len(value.shape), (where.axis, where.outer, where.inner)
                continue
            sources = [n for n in node.all_input_nodes if self._has_content(n)]
            if self._operations.get(node) is not Operation.LAYOUT or len(sources) != 1:
                return
            node = sources[0]

    def _has_content(self, node: Node) -> bool:
        value = self._values.get(node)
        return isinstance(value, Value) and value.is_content
