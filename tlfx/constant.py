"""Constants of a graph: indices and masks that movement depends on, computed where neither image nor chance decide."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from tlfx.alias import AliasSets
from tlfx.provenance import Value
from tlfx.sharded import is_sharded

__all__ = ["Constants"]


class Constants:
    """Evaluates the constant part of a graph, node by node and only on demand."""

    def __init__(self, graph_module: GraphModule, values: dict[Node, Any], aliases: AliasSets) -> None:
        self._graph_module = graph_module
        self._values = values
        self._aliases = aliases
        self._known: dict[Node, Any] = {}

    def evaluate(self, node: Node) -> Any:
        """What a constant node holds, None if it depends on the image or on chance, or has no data."""
        if node not in self._known:
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: Node) -> Any:
        value = self._values.get(node)
        if value is None or isinstance(value, int | float | bool):
            return value
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self._graph_module)
            return None if held.is_meta or is_sharded(held) else held.detach().cpu()
        if not self._is_computable(node, value) or any(self.evaluate(n) is None for n in node.all_input_nodes):
            return None
        args, kwargs = tree_map(
            lambda a: self.evaluate(a) if isinstance(a, Node) else a, (tuple(node.args), dict(node.kwargs))
        )
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _is_computable(self, node: Node, value: Any) -> bool:
        """Whether a node computes a constant from its arguments alone."""
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        constant = all(v.is_constant for v in tree_leaves(value) if isinstance(v, Value))
        return node.op == "call_function" and constant and not random and not self._aliases.is_written(node)
