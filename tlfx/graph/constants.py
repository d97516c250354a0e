"""Constants of a graph: indices and masks that data movement depends on, computed from neither images nor chance."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

__all__ = ["Constants", "is_random", "is_sharded"]


class Constants:
    """Evaluates the constant part of a graph node by node, on demand."""

    def __init__(
        self,
        graph_module: GraphModule,
        number_of: Callable[[Node], int | float | bool | Tensor | None],
        is_constant: Callable[[Node], bool],
    ) -> None:
        """``number_of`` gives the value of a node that is a known number, such as a size, or that holds one everywhere;
        ``is_constant`` tells whether a node computes
        tensors that do not depend on the images and that nothing has written to."""
        self._graph_module = graph_module
        self._number_of = number_of
        self._is_constant = is_constant
        self._known: dict[Node, Any] = {}
        self._learned: dict[Node, bool] = {}

    def evaluate(self, node: Node) -> Any:
        """The value of a constant node; None if it depends on the images or on chance, or has no data."""
        if node not in self._known or not self._is_constant(node):  # written to since
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def number(self, node: Node) -> float | None:
        """The number that a constant node holds everywhere; None if there is none, or if parameters decide it."""
        known = None if self.is_learned(node) else self.evaluate(node)
        if isinstance(known, bool | int | float):
            return float(known)
        if not isinstance(known, Tensor) or known.is_complex() or not known.numel():
            return None
        first = known.flatten()[0]
        return float(first) if bool((known == first).all()) else None

    def is_learned(self, node: Node) -> bool:
        """Whether a node is a parameter, or is computed from the value of one."""
        if self._number_of(node) is not None:
            return False
        if node not in self._learned:
            held = operator.attrgetter(str(node.target))(self._graph_module) if node.op == "get_attr" else None
            self._learned[node] = isinstance(held, nn.Parameter) or any(map(self.is_learned, node.all_input_nodes))
        return self._learned[node]

    def _evaluate(self, node: Node) -> Any:
        number = self._number_of(node)
        if number is not None:
            return number
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self._graph_module)
            return held.detach().cpu() if isinstance(held, Tensor) and not (held.is_meta or is_sharded(held)) else None
        if node.op != "call_function" or is_random(node) or not self._is_constant(node):
            return None
        if any(self.evaluate(n) is None for n in node.all_input_nodes):
            return None
        args, kwargs = tree_map(
            lambda a: self.evaluate(a) if isinstance(a, Node) else a, (tuple(node.args), dict(node.kwargs))
        )
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def is_random(node: Node) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part."""
    loaded = sys.modules.get("torch.distributed.tensor")  # not imported here: the import takes long
    return loaded is not None and isinstance(tensor, loaded.DTensor)
