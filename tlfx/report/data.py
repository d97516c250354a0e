"""What a report holds: plain data for every node of a captured graph, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tlfx.errors import InputError
from tlfx.operations import Operation

__all__ = ["SCHEMA", "NodeReport", "OutputReport", "Summary", "parse_classes", "short"]

SCHEMA = 1
"""Version of the JSON form; it grows when a key changes its meaning or goes away."""


@dataclass(frozen=True)
class NodeReport:
    """One node of the captured graph.

    Shapes are those of the example batch, batch included; token layouts (``before``, ``after``) are those of one image,
    such as ``196 tokens × 384``, ``64 windows × 49 tokens × 3·32`` or ``14×14 × 96``. ``flops`` are for one image.
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
    """The tokens of ``after``, without channels; empty where the node holds no image content."""
    why: str
    flops: int
    read: bool
    """Whether an output's label depends on the label rows (of a mixing weight: on the weights) made or kept here."""
    skip: str | None = None
    """Of a residual: the node that the skip connection starts from."""
    branch: tuple[str, ...] = ()
    """Of a residual: the nodes of its branch g, in order."""
    ends: tuple[str, ...] = ()
    """Of a residual: where its branch begins and ends, as modules beside it or operators."""

    @property
    def rule(self) -> str:
        """The label rule in the paper's notation."""
        return self.operation.formula

    @property
    def short(self) -> str:
        """Name of the operator without namespace and overload."""
        return short(self.operator)

    def is_inside(self, pattern: str) -> bool:
        """Whether the node lies in a module that a glob pattern names, or below one."""
        return fnmatchcase(self.module, pattern) or fnmatchcase(self.module, f"{pattern}.*")

    def to_dict(self) -> dict[str, Any]:
        """The node for JSON, keys in a stable order."""
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
    """Where the label of one output is read: ``rows`` of the ``of`` label rows that ``node`` makes."""

    index: int
    shape: tuple[int, ...]
    rows: int
    of: int
    node: str | None
    """The node that makes the label, None for an output without image content or of several labels."""

    def to_dict(self) -> dict[str, Any]:
        """The output for JSON."""
        return {"index": self.index, "shape": list(self.shape), "rows": self.rows, "of": self.of, "node": self.node}


@dataclass(frozen=True)
class Summary:
    """Operators and FLOPs of one class."""

    operation: Operation
    count: int
    flops: int
    share: float
    """Share of the model's FLOPs, 0 to 1."""


def parse_classes(text: str | Sequence[str] | None) -> tuple[Operation, ...]:
    """Classes named in full or by their beginning, joined by commas; all of them for None. Raises InputError.

    >>> [operation.value for operation in parse_classes("spatial,res")]
    ['spatial_mix', 'residual']
    """
    if text is None:
        return tuple(Operation)
    names = text.split(",") if isinstance(text, str) else list(text)
    chosen = [[o for o in Operation if o.value.startswith(name.strip().replace("-", "_"))] for name in names]
    for name, found in zip(names, chosen, strict=True):
        if not found or not name.strip():
            raise InputError(f"unknown class {name!r}; the classes are {', '.join(o.value for o in Operation)}")
    return tuple(o for o in Operation if any(o in found for found in chosen))
