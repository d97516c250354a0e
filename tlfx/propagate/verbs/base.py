"""The base of all verbs: the operator that is applied, its output shapes, and new values and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import SymInt, Tensor
from torch.fx import Node

from tlfx.errors import ProvenanceError, RuleError
from tlfx.graph.nodes import shapes
from tlfx.operations import Operation
from tlfx.policy import Policy
from tlfx.propagate.maps import NONE, compact, map_of_ids
from tlfx.propagate.state import PropagationState
from tlfx.propagate.values import Role, Value
from tlfx.runtime import BatchAxis

__all__ = ["Verbs"]

V = TypeVar("V", bound="Verbs")

# from the operation that changes labels least to the one that changes them most
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
        self._state = state
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
        """One of several steps that the operator consists of, with this output shape."""
        step = copy(self)
        step._shapes, step._whole = [tuple(shape)], self
        return step

    @property
    def batch(self) -> int:
        """Batch size of the analysis, or the number of samples that a branch sees."""
        return self._state.batch

    @property
    def policy(self) -> Policy:
        """How labels are to be combined."""
        return self._state.options.policy

    @property
    def signed(self) -> dict[str, bool]:
        """Options of label functions that normalise weights of either sign."""
        return {"signed": True} if self.policy.weights == "signed" else {}

    @property
    def _by_norm_of_values(self) -> bool:
        """Whether attention weights the heads of a token by the norms of its value."""
        return self.policy.heads == "norm" or self.policy.values != "equal"

    @property
    def _deviation(self) -> dict[str, bool]:
        """Options of label functions that take norms of values."""
        return {"deviation": True} if self.policy.values == "deviation" else {}

    def record(self, operation: Operation) -> None:
        """Record the operation of the operator; of several, the one that changes labels most counts."""
        if _PRECEDENCE.index(operation) > _PRECEDENCE.index(self.operation):
            self.operation = operation
        if self._whole is not None:
            self._whole.record(operation)

    def constant(self, shape: Sequence[int] | None = None, number: float | None = None) -> Value:
        """A value without image content, which holds the same ``number`` everywhere if that is known."""
        return Value(self.node, tuple(self.shape if shape is None else shape), self.batch, number=number)

    def number(self, x: Any) -> float | None:
        """The number that an argument is, or that a constant holds everywhere; None for what is learned, depends on
        the image or on chance, or differs from element to element.

        Elements that hold a number are padding, which carries no label; learned ones are tokens, which carry λ (eq. 5).
        """
        if not isinstance(x, Value):
            return float(x) if isinstance(x, int | float) else None
        if not x.is_constant or x.number is not None:
            return x.number
        return self._state.constants.number(x.node)

    def content(self, *maps: Tensor, role: Role = Role.CONTENT, shape: Sequence[int] | None = None) -> Value:
        """A value with maps; one whose map holds no label at all is a constant."""
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

    def of_batch(self, shape: Sequence[int] | None = None) -> Value:
        """A value that is computed over several samples of the batch: content that depends on it is refused."""
        return replace(self.weight(shape=shape), mixes_samples=self.node)

    def is_over_batch(self, x: Value, axes: Sequence[int]) -> bool:
        """Whether any of ``axes`` of a value is that of the batch."""
        gone = [a % len(x.shape) for a in axes]
        if x.is_content:
            return x.batch_axis.axis in gone
        if x.maps:
            return any(_changes_sample(m, x.batch, a) for m in x.maps for a in gone)
        sizes = getattr(x.node.meta.get("val"), "shape", ())
        # a weight without maps: capture leaves the size of the batch symbolic
        if len(sizes) == len(x.shape) and any(isinstance(s, SymInt) for s in sizes):
            return any(isinstance(sizes[a], SymInt) for a in gone)
        # a fixed size of the batch: an axis in front that may hold it
        return not x.is_constant and 0 in gone and x.shape[0] % x.batch == 0

    def number_of(self, *values: Any) -> Value:
        """A value without label that is computed from all elements of values, such as a loss or a histogram."""
        given = [v for v in values if isinstance(v, Value) and not v.is_constant]
        return self.of_batch() if any(self.is_over_batch(v, range(len(v.shape))) for v in given) else self.weight()

    def from_ids(self, ids: Tensor, where: BatchAxis, shape: Sequence[int] | None = None) -> Value:
        """Content from the label ids of one sample and the place of the batch in the output."""
        return self.content(map_of_ids(ids, self.batch, where), shape=shape)

    def label(self, function: Callable[..., Any], *args: Any, shape: Sequence[int], **options: Any) -> Tensor:
        """New labels computed by a function of :mod:`tlfx.runtime`; returns their ids, in ``shape``."""
        options = {"after": self.node, "samples": self._state.samples, **options}
        return self._state.labels.add(function, *args, shape=tuple(shape), **options)

    def resolve(self, x: Value) -> Value:
        """A context (kᵀv) used as content by itself: its labels averaged over heads."""
        if x.role is not Role.CONTEXT:
            return x
        return x.with_maps(compact(self._state.contexts.resolve(x.maps[0])), role=Role.CONTENT)

    def resolve_all(self, *values: Any) -> list[Any]:
        """Every context among the values resolved, anything else as it is."""
        return [self.resolve(v) if isinstance(v, Value) else v for v in values]

    def concrete(self, x: Any) -> Any:
        """The tensor of a constant: indices and masks that depend neither on the image nor on chance.

        Raises ProvenanceError if the value does.
        """
        if not isinstance(x, Value):
            return x
        known = self._state.constants.decide(x.node) if x.is_constant else None
        if known is None:
            raise ProvenanceError(f"{x.node.name} depends on the image or on chance, so it is not known at capture")
        return known

    def is_fixed(self, x: Any) -> bool:
        """Whether a value is known and does not depend on parameters or buffers, which may change: labels can be moved
        by it once and for all."""
        return self.is_known(x) and not (isinstance(x, Value) and self._state.constants.depends_on_model(x.node))

    def is_known(self, x: Any) -> bool:
        """Whether :meth:`concrete` can evaluate a value."""
        # evaluate, not decide: labels do not depend on a constant that is only asked for
        return not isinstance(x, Value) or (x.is_constant and self._state.constants.evaluate(x.node) is not None)


def _changes_sample(content: Tensor, batch: int, axis: int) -> bool:
    """Whether elements of a map along an axis belong to several samples."""
    sample, known = content % batch, content != NONE
    # elements without content count as neither extreme
    first, last = torch.where(known, sample, batch).amin(axis), torch.where(known, sample, -1).amax(axis)
    return bool((first < last).any())


def varying(ids: Tensor, axes: Sequence[int]) -> list[int]:
    """Those of ``axes`` along which compact ids vary."""
    return [a for a in axes if ids.shape[a] > 1]


def axis_of_ids(where: BatchAxis, axis: int) -> int:
    """The axis of the ids of a value, whose batch axis is split in two, by the axis of the value."""
    return axis if axis < where.axis else axis + 1
