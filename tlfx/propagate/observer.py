"""Intermediate labels: of modules and nodes inside a graph, chosen by glob patterns."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tlfx.errors import InputError
from tlfx.graph.nodes import module_stack
from tlfx.propagate.outputs import is_real, read_label
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext

__all__ = ["EVERY_MODULE", "LabelRecorder", "ObservedLabels", "Observer"]

EVERY_MODULE = "*"
"""The pattern of all modules."""


@dataclass(frozen=True, eq=False)
class ObservedLabels:
    """Label ids of modules and nodes by name, in the shape of positions, and the names that each pattern stands for."""

    ids: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)


class LabelRecorder:
    """Labels on the way of the latest aligned call, by name: those that ``patterns`` stand for."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self.labels: dict[str, Tensor] = {}

    def take(self, recorded: ObservedLabels, labels: Sequence[Tensor]) -> None:
        """Keep the labels (batch, *positions, channels) of a call, one for each of the ``recorded`` ids; a single
        channel is squeezed."""
        by_name = {n: x.squeeze(-1) for n, x in zip(recorded.ids, labels, strict=True)}
        self.labels.clear()
        for pattern in self.patterns:
            self.labels.update({name: by_name[name] for name in recorded.names[pattern]})


class Observer:
    """Keeps the values of modules and nodes as they were when they were computed: later in-place writes change them."""

    def __init__(self, graph: Graph) -> None:
        self.modules: dict[str, Value] = {}
        self.nodes: dict[str, Value] = {}
        inside: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for path in _paths(node):
                inside.setdefault(path, []).append(node)
        self._ends: dict[Node, list[tuple[str, list[Node]]]] = {}
        for path, nodes in reversed(inside.items()):  # of those that end together the innermost first
            self._ends.setdefault(nodes[-1], []).append((path, [n for n in reversed(nodes) if _leaves(n, path)]))

    def see(self, node: Node, values: Mapping[Node, Any]) -> None:
        """Note the value of a node, and the output of every module that ends with it."""
        for value in _content([node], values):
            self.nodes[node.name] = value
        for path, given in self._ends.get(node, ()):
            # of several outputs of a module, the one that was computed last
            for value in list(_content(given, values))[:1]:
                self.modules[path] = value

    def choose(self, patterns: Sequence[str], op: OpContext) -> ObservedLabels:
        """The ids of all modules that patterns match, and of all nodes where a pattern matches no module; ``op`` is
        the output node as an operation.

        Raises InputError for a pattern that matches neither.
        """
        names = {p: self._matching(p) for p in patterns}
        known = {**self.nodes, **self.modules}
        ids = {n: _positions(op, known[n]) for n in dict.fromkeys(n for matches in names.values() for n in matches)}
        return ObservedLabels(ids, names)

    def _matching(self, pattern: str) -> tuple[str, ...]:
        for known in (self.modules, self.nodes):
            matches = tuple(name for name in known if fnmatchcase(name, pattern))
            if matches:
                return matches
        names = [*self.modules, *self.nodes]
        near = difflib.get_close_matches(pattern, names, cutoff=0.5) or names[:3]
        raise InputError(
            f"{pattern!r} matches no module and no graph node that carries labels; near it are "
            f"{', '.join(map(repr, near))}. A module that does nothing (an identity, or dropout in evaluation) is not "
            "in the graph: name the module around it. `tlfx code` prints the names of all nodes"
        )


def _paths(node: Node) -> list[str]:
    """Paths of the modules that a node was captured in, except the model itself."""
    return list(dict.fromkeys(path for path, _ in module_stack(node) if path))


def _leaves(node: Node, path: str) -> bool:
    """Whether a node outside a module reads this node of it."""
    return any(user.op == "output" or path not in _paths(user) for user in node.users)


def _content(nodes: Sequence[Node], values: Mapping[Node, Any]) -> Iterator[Value]:
    """Values of the nodes that could have a label as outputs of a model."""
    for node in nodes:
        value = values.get(node)
        if isinstance(value, Value) and is_real(node) and value.is_content and len(value.shape) > 1:
            yield value


def _positions(op: OpContext, value: Value) -> Tensor:
    """Ids of a value in the shape of its positions: the axes along which it has tokens, windows before them."""
    label = read_label(op, value, _channel_axis(value))
    merged = [label.where.axis + i for i, parts in enumerate((label.where.outer, label.where.inner)) if parts == 1]
    return label.ids.squeeze(merged)


def _channel_axis(value: Value) -> int:
    """The channel axis: the last axis along which labels are constant (heads come before it), or the axis along which
    they repeat most (several tokens merged into the channels)."""
    where = value.batch_axis.axis
    axes = [a for a in range(len(value.shape)) if a != where]
    free = [a for a in axes if value.shape[a] > 1] or axes
    constant = [a for a in free if value.map.shape[a] == 1]
    if len(constant) == len(free):
        # labels vary nowhere: (batch, tokens, channels) has its channels last, (batch, channels, *size) first
        return free[-1] if len(value.shape) == 3 else free[0]
    return constant[-1] if constant else max(free, key=lambda a: _repeats(value.map, a))


def _repeats(content: Tensor, axis: int) -> float:
    """How often, on average, a slice along an axis repeats: the number of slices over that of distinct slices."""
    along = content.movedim(axis, 0).flatten(1)
    return len(along) / len(torch.unique(along, dim=0))
