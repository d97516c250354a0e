"""What every verb builds on: the operation under way, its output shapes, and new values and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeVar

from torch import Tensor
from torch.fx import Node

from tlfx.errors import ProvenanceError, RuleError
from tlfx.graph.nodes import shapes
from tlfx.operations import Operation
from tlfx.policy import Policy
from tlfx.propagate.state import PropagationState
from tlfx.propagate.values import NONE, BatchAxis, Role, Value, compact, merge_batch

__all__ = ["Verbs"]

V = TypeVar("V", bound="Verbs")

_PRECEDENCE = (
    Operation.LAYOUT,
    Operation.POINTWISE,
    Operation.CHANNEL_MIX,
    Operation.WEIGHT,
    Operation.RESIDUAL,
    Operation.AGGREGATION,
    Operation.SPATIAL_MIX,
)


class Verbs:
    """One call of an operator in the graph, as its rule sees it."""

    def __init__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], state: PropagationState) -> None:
        self.node = node
        self.args = args
        self.kwargs = kwargs
        self.state = state
        self.operation = Operation.LAYOUT
        self._shapes: list[tuple[int, ...]] | None = None
        self._whole: Verbs | None = None

    @property
    def target(self) -> Any:
        """The operator itself."""
        return self.node.target

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) output."""
        return self.shapes[0]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all tensor outputs."""
        return shapes(self.node) if self._shapes is None else self._shapes

    def step(self: V, shape: Sequence[int]) -> V:
        """One of several steps that the operator consists of, with an output of its own."""
        step = copy(self)
        step._shapes, step._whole = [tuple(shape)], self
        return step

    @property
    def batch(self) -> int:
        """Batch size of the analysis."""
        return self.state.batch

    @property
    def policy(self) -> Policy:
        """How labels are to be combined."""
        return self.state.options.policy

    @property
    def signed(self) -> dict[str, bool]:
        """Options of label functions that normalise weights of either sign."""
        return {"signed": True} if self.policy.weights == "signed" else {}

    def record(self, operation: Operation) -> None:
        """Note what the operator turned out to be; of several, the one that does most to the labels stands."""
        if _PRECEDENCE.index(operation) > _PRECEDENCE.index(self.operation):
            self.operation = operation
        if self._whole is not None:
            self._whole.record(operation)

    def constant(self, shape: Sequence[int] | None = None) -> Value:
        """A value without image content."""
        return Value(self.node, tuple(self.shape if shape is None else shape), self.batch)

    def content(self, *maps: Tensor, role: Role = Role.CONTENT, shape: Sequence[int] | None = None) -> Value:
        """A value with maps; one whose map holds no row at all is a constant."""
        shape = tuple(self.shape if shape is None else shape)
        for m in maps:
            if m.dim() != len(shape) or any(a not in (1, b) for a, b in zip(m.shape, shape, strict=True)):
                raise RuleError(f"the rule gives a map of shape {tuple(m.shape)} to an output of shape {shape}")
        maps = tuple(compact(m) for m in maps)
        if role is Role.CONTENT and bool((maps[0] == NONE).all()):
            return self.constant(shape)
        return Value(self.node, shape, self.batch, role, maps)

    def weight(self, *maps: Tensor, shape: Sequence[int] | None = None) -> Value:
        """A mixing weight or another value that depends on the image and carries no label."""
        return self.content(*maps, role=Role.WEIGHT, shape=shape)

    def from_rows(self, rows: Tensor, where: BatchAxis, shape: Sequence[int] | None = None) -> Value:
        """Content from the rows of one sample and the place of the batch in the output."""
        return self.content(merge_batch(rows, self.batch, where), shape=shape)

    def label(self, function: Callable[..., Any], *args: Any, shape: Sequence[int], **options: Any) -> Tensor:
        """New label rows computed by a function of :mod:`tlfx.runtime`; returns their numbers, in ``shape``."""
        return self.state.labels.add(function, *args, shape=tuple(shape), **{"after": self.node, **options})

    def resolve(self, x: Value) -> Value:
        """A context (kᵀv) used as content by itself: its labels averaged over heads."""
        if x.role is not Role.CONTEXT:
            return x
        return x.with_maps(compact(self.state.contexts.resolve(x.maps[0])), role=Role.CONTENT)

    def resolve_all(self, *values: Any) -> list[Any]:
        """Every context among the values resolved, anything else as it is."""
        return [self.resolve(v) if isinstance(v, Value) else v for v in values]

    def concrete(self, x: Any) -> Any:
        """What a constant holds: indices and masks that do not depend on the image or on chance.

        Raises ProvenanceError if the value does.
        """
        if not isinstance(x, Value):
            return x
        found = self.state.constants.evaluate(x.node) if x.is_constant else None
        if found is None:
            raise ProvenanceError(f"{x.node.name} depends on the image or on chance, so it is not known at capture")
        return found

    def is_known(self, x: Any) -> bool:
        """Whether :meth:`concrete` can tell what a value holds."""
        return not isinstance(x, Value) or (x.is_constant and self.state.constants.evaluate(x.node) is not None)


def varying(rows: Tensor, axes: Sequence[int]) -> list[int]:
    """Those of ``axes`` along which compact rows vary."""
    return [a for a in axes if rows.shape[a] > 1]


def numbered(where: BatchAxis, axis: int) -> int:
    """Where an axis of a value stands in its rows, whose batch axis is split in two."""
    return axis if axis < where.axis else axis + 1
