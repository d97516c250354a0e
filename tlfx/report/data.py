"""The data of a report: one entry for every node of a captured graph, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tlfx.errors import InputError
from tlfx.graph.nodes import is_inside
from tlfx.operations import Operation

__all__ = ["SCHEMA", "ModelReport", "NodeReport", "OutputReport", "Summary", "parse_classes", "short"]

SCHEMA = 1
"""Version of the JSON format; it increases when a key changes its meaning or is removed."""


@dataclass(frozen=True)
class NodeReport:
    """One node of the captured graph.

    Shapes include the batch axis of the example. Token layouts (``before``, ``after``) are for one image, such as
    ``196 tokens × 384``, ``64 windows × 49 tokens × 3·32`` or ``14×14 × 96``, and so are ``flops``.
    """

    name: str
    operator: str
    operation: Operation
    module: str
    module_class: str
    inputs: tuple[str, ...]
    in_shapes: tuple[tuple[int, ...], ...]
    out_shapes: tuple[tuple[int, ...], ...]
    before: str
    after: str
    tokens: str
    """The tokens of ``after`` without channels; empty for a node without image content."""
    why: str
    flops: int
    read: bool
    """Whether the label of an output depends on the labels of this node (for a mixing weight: on its values)."""
    skip: str | None = None
    """For a residual: the node where the skip connection starts."""
    branch: tuple[str, ...] = ()
    """For a residual: the nodes of its branch g, in order."""
    shortcut: tuple[str, ...] = ()
    """For a residual: the nodes on its skip connection, such as the downsampling of a ResNet, in order."""
    ends: tuple[str, ...] = ()
    """For a residual: first and last module (or operator) of its branch."""

    @property
    def rule(self) -> str:
        """The label rule in the paper's notation."""
        return self.operation.formula

    @property
    def short(self) -> str:
        """Name of the operator without namespace and overload."""
        return short(self.operator)

    def is_inside(self, pattern: str) -> bool:
        """Whether the node is in a module that matches a glob pattern, or in a submodule of one."""
        return is_inside(self.module, pattern)

    def to_dict(self) -> dict[str, Any]:
        """The node as JSON-compatible data, keys in a fixed order."""
        return {
            "name": self.name,
            "operator": self.operator,
            "class": self.operation.value,
            "module": self.module,
            "module_class": self.module_class,
            "inputs": list(self.inputs),
            "in_shapes": [list(s) for s in self.in_shapes],
            "out_shapes": [list(s) for s in self.out_shapes],
            "before": self.before,
            "after": self.after,
            "rule": self.rule,
            "why": self.why,
            "flops": self.flops,
            "read": self.read,
            "skip": self.skip,
            "branch": list(self.branch),
            "shortcut": list(self.shortcut),
        }


def short(operator: str) -> str:
    """Name of an operator without namespace and overload.

    >>> short("aten.linear.default"), short("getitem")
    ('linear', 'getitem')
    """
    parts = operator.split(".")
    name = parts[1] if len(parts) > 2 else operator
    return "attention" if name == "scaled_dot_product_attention" else name


@dataclass(frozen=True)
class OutputReport:
    """Where the label of one output is read: ``labels`` of the ``of`` labels that ``node`` makes."""

    index: int
    shape: tuple[int, ...]
    labels: int
    of: int
    node: str | None
    """The node that makes the label; None for an output without image content, or with labels of several nodes."""

    def to_dict(self) -> dict[str, Any]:
        """The output as JSON-compatible data."""
        return {"index": self.index, "shape": list(self.shape), "labels": self.labels, "of": self.of, "node": self.node}


@dataclass(frozen=True)
class Summary:
    """Number of operators and FLOPs of one class."""

    operation: Operation
    count: int
    flops: int
    share: float
    """Fraction of the model's FLOPs, 0 to 1."""


@dataclass(frozen=True)
class ModelReport:
    """The operators of a model and its outputs, with sums over them; :class:`tlfx.Report` adds text and pictures."""

    model: str
    input_shape: tuple[int, ...]
    training: bool
    batch: int
    """Batch size of the shapes in the report."""
    parameters: int
    modules: dict[str, str]
    """Class of every module, by its path."""
    nodes: tuple[NodeReport, ...]
    outputs: tuple[OutputReport, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of nodes of every class, in the order of :class:`tlfx.Operation`; 0 for a class without nodes.

        >>> from torch import nn
        >>> from tlfx.report import inspect
        >>> inspect(nn.Conv2d(3, 8, 4, 4)).counts["aggregation"]
        1
        """
        return {o.value: sum(n.operation is o for n in self.nodes) for o in Operation}

    @property
    def flops(self) -> int:
        """FLOPs of contractions and convolutions for one image; a multiplication and an addition count as two."""
        return sum(n.flops for n in self.nodes)

    @property
    def summary(self) -> list[Summary]:
        """Number of operators and FLOPs of every class."""
        by_class = {o: sum(n.flops for n in self.nodes if n.operation is o) for o in Operation}
        total = max(self.flops, 1)
        return [Summary(o, self.counts[o.value], f, f / total) for o, f in by_class.items()]

    @cached_property
    def by_name(self) -> dict[str, NodeReport]:
        """The nodes by name."""
        return {n.name: n for n in self.nodes}

    def select(self, module: str | None = None, only: str | Sequence[str] | None = None) -> list[NodeReport]:
        """Nodes in modules that match a glob pattern, restricted to some classes (``"spatial,residual"``).

        Raises InputError for an unknown class.
        """
        classes = parse_classes(only)
        return [n for n in self.nodes if n.operation in classes and (module is None or n.is_inside(module))]

    def to_dict(self, nodes: Sequence[NodeReport] | None = None) -> dict[str, Any]:
        """The report as JSON-compatible data; ``nodes`` restricts the list of nodes, but not the sums.

        Keys, in this order: ``schema`` (version of this format), ``model``, ``input`` (shape of one image),
        ``training``, ``batch``, ``parameters``, ``flops``, ``summary`` (count of nodes by class), ``flops_by_class``,
        ``outputs`` (index, shape, labels, of, node) and ``nodes`` (name, operator, class, module, module_class, inputs,
        in_shapes, out_shapes, before, after, rule, why, flops, read, skip, branch, shortcut), in order of
        execution.
        """
        return {
            "schema": SCHEMA,
            "model": self.model,
            "input": list(self.input_shape),
            "training": self.training,
            "batch": self.batch,
            "parameters": self.parameters,
            "flops": self.flops,
            "summary": dict(self.counts),
            "flops_by_class": {s.operation.value: s.flops for s in self.summary},
            "outputs": [o.to_dict() for o in self.outputs],
            "nodes": [n.to_dict() for n in (self.nodes if nodes is None else nodes)],
        }


def parse_classes(text: str | Sequence[str] | None) -> tuple[Operation, ...]:
    """Classes from comma-separated names or prefixes of names; all classes for None. Raises InputError.

    >>> [operation.value for operation in parse_classes("spatial,res")]
    ['spatial_mix', 'residual']
    """
    if text is None:
        return tuple(Operation)
    names = text.split(",") if isinstance(text, str) else list(text)
    chosen = [[o for o in Operation if o.value.startswith(name.strip().replace("-", "_"))] for name in names]
    for name, matches in zip(names, chosen, strict=True):
        if not matches or not name.strip():
            raise InputError(f"unknown class {name!r}; the classes are {', '.join(o.value for o in Operation)}")
    return tuple(o for o in Operation if any(o in matches for matches in chosen))
