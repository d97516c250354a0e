"""Branch scales: constants that multiply a branch before it is summed, such as LayerScale and stochastic depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.fx import Node

from tlfx.operations import Operation

__all__ = ["BranchScales"]


class BranchScales:
    """Products of content and a constant, by their node."""

    def __init__(self, is_content: Callable[[Node], bool], operations: Mapping[Node, Operation]) -> None:
        self._is_content = is_content
        self._operations = operations
        self._factors: dict[Node, tuple[Node, Any, Any]] = {}

    def note(self, product: Node, content: Node, factor: Any, layout: Any = None) -> None:
        """Note a product of a content node and a factor, which is a node or a number; ``layout`` is handed back."""
        self._factors[product] = (content, factor, layout)

    def of(self, node: Node) -> Iterator[tuple[Any, Any]]:
        """The factors of a summand, the last first, each with the layout of its product: those that only data movement
        separates from the sum."""
        while True:
            if node in self._factors:
                node, factor, layout = self._factors[node]
                yield factor, layout
                continue
            # data movement, such as a transpose between LayerScale and the sum
            sources = [n for n in node.all_input_nodes if self._is_content(n)]
            if self._operations.get(node) is not Operation.LAYOUT or len(sources) != 1:
                return
            node = sources[0]
