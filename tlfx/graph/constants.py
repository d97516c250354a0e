"""Constants of a graph: indices and masks that data movement depends on, computed from neither images nor chance."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from tlfx._torch import tree_map, version
from tlfx.graph.shells import MODEL

__all__ = ["Constants", "Decision", "is_random", "is_sharded"]


class Constants:
    """Evaluates the constant part of a graph node by node, on demand."""

    def __init__(
        self,
        graph_module: GraphModule,
        number_of: Callable[[Node], int | float | bool | Tensor | None],
        is_constant: Callable[[Node], bool],
    ) -> None:
        """``number_of`` gives the value of a node that is a known number, such as a size, or that holds one everywhere;
        ``is_constant`` tells whether a node computes tensors that do not depend on the images and that nothing has
        written to."""
        self._graph_module = graph_module
        self._number_of = number_of
        self._is_constant = is_constant
        self._known: dict[Node, Any] = {}
        self._learned: dict[Node, bool] = {}
        self._of_model: dict[Node, bool] = {}
        self.decisions: dict[Node, Decision] = {}
        """The constants that read tensors, such as parameters and buffers, and that labels were placed by."""

    def depends_on_model(self, node: Node) -> bool:
        """Whether a constant node reads a parameter, a buffer or another attribute of the model, which may change."""
        if node not in self._of_model:
            is_attribute = node.op == "get_attr" and str(node.target).partition(".")[0] == MODEL
            self._of_model[node] = is_attribute or any(map(self.depends_on_model, node.all_input_nodes))
        return self._of_model[node]

    def decide(self, node: Node) -> Any:
        """The value of a constant node, on which a propagation depends from now on: see :attr:`decisions`."""
        value = self.evaluate(node)
        if isinstance(value, Tensor) and node not in self.decisions:
            program = self._program(node)
            if any(n.op == "get_attr" for n in program):
                self.decisions[node] = Decision(self._graph_module, program, value)
        return value

    def _program(self, node: Node) -> dict[Node, Any]:
        """The nodes that a value is computed by, in order, with the values of those that are numbers."""
        needed: dict[Node, Any] = {}
        open_nodes = [node]
        while open_nodes:
            needs = open_nodes.pop()
            needed[needs] = self._number_of(needs)
            if needed[needs] is None:
                open_nodes += [n for n in needs.all_input_nodes if n not in needed]
        return {n: needed[n] for n in self._graph_module.graph.nodes if n in needed}

    def evaluate(self, node: Node) -> Any:
        """The value of a constant node; None if it depends on the images or on chance, or has no data."""
        if node not in self._known or not self._is_constant(node):  # written to since
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def number(self, node: Node) -> float | None:
        """The number that a constant node holds everywhere; None if there is none, or if parameters decide it."""
        known = None if self.is_learned(node) else self.decide(node)
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
        if node.op not in ("get_attr", "call_function") or is_random(node) or not self._is_constant(node):
            return None
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self._graph_module)
            return _data_of(held) if isinstance(held, Tensor) and not (held.is_meta or is_sharded(held)) else None
        if any(self.evaluate(n) is None for n in node.all_input_nodes):
            return None
        return _computed(node, self._known)


class Decision:
    """The value of a constant node, by which labels were placed, and how to tell whether it is still the same."""

    def __init__(self, graph_module: GraphModule, program: dict[Node, Any], value: Any) -> None:
        self._graph_module = graph_module
        self._program = program
        self._value = value
        self._versions = self._read_versions()

    def is_current(self) -> bool:
        """Whether the node would have the same value now.

        On the CPU it is computed again at each call. On other devices, where that would wait for the device, it is
        computed again only if a tensor that it depends on was replaced or written to in place, other than through
        ``.data``.
        """
        versions = self._read_versions()
        if versions == self._versions and not any(on_cpu for _, _, on_cpu in versions):
            return True
        known: dict[Node, Any] = {}
        for node, number in self._program.items():
            if number is not None:
                known[node] = number
            elif node.op == "get_attr":
                known[node] = _data_of(operator.attrgetter(str(node.target))(self._graph_module))
            else:
                known[node] = _computed(node, known)
        now = known[next(reversed(self._program))]
        self._versions = versions
        return now.shape == self._value.shape and torch.equal(now, self._value)

    def _read_versions(self) -> list[tuple[int, int, bool]]:
        paths = [str(n.target) for n in self._program if n.op == "get_attr"]
        held = [operator.attrgetter(path)(self._graph_module) for path in paths]
        return [(id(x), version(x), x.device.type == "cpu") for x in held]


def _data_of(tensor: Tensor) -> Tensor:
    """A copy on the CPU, so that later writes to the tensor do not change what is known."""
    return tensor.detach().to("cpu", copy=True)


def _computed(node: Node, known: Mapping[Node, Any]) -> Any:
    """The result of an operator on known values."""
    args, kwargs = tree_map(lambda a: known[a] if isinstance(a, Node) else a, (tuple(node.args), dict(node.kwargs)))
    if kwargs.get("device") is not None:
        # known values are copies on the CPU, wherever the model is
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
