"""Two values in one operator: which of them decides, and their labels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx._torch import tree_leaves
from tlfx.errors import ProvenanceError
from tlfx.graph.nodes import computes_same
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand, by_first_occurrence
from tlfx.propagate.maps import NONE, compact, ids_of_sample
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.pending import to_rank
from tlfx.propagate.verbs.written import Written
from tlfx.runtime import BatchAxis

__all__ = ["Combined", "merge"]


class Combined(Written):
    """Point-wise verbs of one value, and what sums, products and choices of two values share."""

    def pointwise(self, x: Value) -> Value:
        """Point-wise transformation, Y ← Y, of one value, alone or combined with constants."""
        self.record(Operation.WEIGHT if x.role is Role.WEIGHT else Operation.POINTWISE)
        elements = self._repeated_content(x)
        by_place = elements is not None and (x.by_place or len(self.node.all_input_nodes) > 1)
        out = replace(self._shaped(x), elements=elements, by_place=by_place)
        out = replace(out, function_of=x.subject, weighs=x.weighs)
        return replace(out, is_gate=x.is_gate and x.shape == self.shape, biased=x.biased)

    def _repeated_content(self, x: Value) -> Tensor | None:
        """The map of elements with equal content, of a value that is repeated along an axis, alone or by constants."""
        others = [v for v in tree_leaves((self.args, self.kwargs)) if isinstance(v, Value) and not v.is_constant]
        if any(v is not x for v in others) or (x.elements is None and x.shape == self.shape):
            return None
        return to_rank(x.numbered if x.elements is None else x.elements, len(self.shape))

    def linear(self, x: Value, scale: float | None = 1) -> Value:
        """The same by a linear function, such as a sum with a constant, or a product with the number ``scale``."""
        return self._bounded(self._scaled_mass(x, self.pointwise(x), scale))

    def _one_of(self, a: Value, b: Value, keep: Role) -> Value | None:
        """The result where one of two operands decides: with a constant, of two weights, or of a weight and content."""
        if a.is_constant or b.is_constant:
            return self.pointwise(b if a.is_constant else a)
        if Role.CONTEXT in (a.role, b.role):
            return self._beside_context(a, b)
        if a.role is b.role:
            # a decision has no sides: those of the other weight stay
            return self.pointwise(a if a.maps else b) if a.role is Role.WEIGHT else None
        weight, content = (a, b) if a.role is Role.WEIGHT else (b, a)
        full = self._is_full(weight), self._is_full(content)
        # the operand that has all elements of the output decides, else what the operator keeps
        as_weight = full == (True, False) or (keep is Role.WEIGHT and full != (False, True))
        return self.pointwise(weight if weight.maps and as_weight else content)

    def _beside_content(self, a: Value, b: Value) -> tuple[Value, Value]:
        """A context combined with a value with content of the full shape, or with another one, is content itself; with
        a statistic of it, as in a softmax that is written out, it stays one."""
        self._check_samples(a, b)
        full = [
            v.is_content and v.shape == self.shape and not self._sign_of_statistic(v, other)
            for v, other in ((a, b), (b, a))
        ]
        return (self.resolve(a), self.resolve(b)) if a.role is b.role or any(full) else (a, b)

    def _sign_of_statistic(self, x: Value, of: Value) -> int:
        """The sign with which a value is a statistic of another one; 0 if it is none."""
        return next((sign for node, sign in x.statistic.items() if computes_same(node, of.measured)), 0)

    def _beside_context(self, a: Value, b: Value) -> Value:
        context, other = (a, b) if a.role is Role.CONTEXT else (b, a)
        self.record(Operation.POINTWISE)
        return self._shaped(other if other.role is Role.WEIGHT and other.shape == self.shape else context)

    def _check_samples(self, a: Value, b: Value) -> None:
        """Raise ProvenanceError where two values with content have their samples at different places."""
        if a.is_content and b.is_content and self.batch > 1:
            for v in (a, b):
                _ = v.ids  # raises where samples are laid out differently, as on a diagonal of batch and tokens
            # axes are counted from the end, as broadcasting aligns them
            places = {(v.batch_axis.axis - len(v.shape), *v.batch_axis[1:]) for v in (a, b)}
            if len(places) > 1:
                raise ProvenanceError(
                    f"{self.node.name} combines a sample of the batch with another sample; labels belong to one sample "
                    "each. Align the part of the model before it instead."
                )

    def _have_one_subject(self, a: Value, b: Value) -> bool:
        """Whether two values are functions of the same elements, such as x and sigmoid(x), or x and its norm: their
        product or quotient is another element-wise function of these, or a normalisation, and not a weighted value."""
        return a.is_content and b.is_content and a.subject is b.subject and self._have_one_map(a, b)

    def _have_one_base(self, a: Value, b: Value) -> bool:
        """The same of two values, either of which may be multiplied by factors."""
        return a.is_content and b.is_content and a.base is b.base and self._have_one_map(a, b)

    def _have_one_map(self, a: Value, b: Value) -> bool:
        """Whether two values have the same labels, and one has all elements of the output."""
        if not (self._is_full(a) or self._is_full(b)):
            return False
        return torch.equal(*torch.broadcast_tensors(*(self._shaped(v).map for v in (a, b))))

    def _is_full(self, x: Value) -> bool:
        """Whether a value has the shape of the output and is not repeated along any of its axes, or a part of one."""
        if x.shape != self.shape or (x.elements is not None and not x.by_place):
            return False
        return all(n == 1 or own for n, own in zip(x.shape, self._own_axes(x), strict=True))

    def _is_full_of_content(self, x: Value) -> bool:
        """The same for the content that its elements hold."""
        return self._is_full(replace(x, by_place=False))

    def _shaped(self, x: Value) -> Value:
        """The value broadcast to the shape of the output."""
        maps = tuple(to_rank(m, len(self.shape)) for m in x.maps)
        return Value(self.node, self.shape, self.batch, x.role, maps)

    def _averaged(self, a: Value, b: Value, function: Any = runtime.average, *options: Any) -> Value:
        """Labels that agree stay; each distinct pair of differing labels becomes one new label."""
        where, ids_a, ids_b = self._side_by_side(a, b)
        return self.from_ids(compact(self._pairs(ids_a, ids_b, function, *options)), where)

    def _side_by_side(self, a: Value, b: Value) -> tuple[BatchAxis, Tensor, Tensor]:
        """Ids of two values in one shape, and the place of the batch in their sum."""
        a, b = self._shaped(a), self._shaped(b)
        where = a.batch_axis
        ids_a, ids_b = torch.broadcast_tensors(*(ids_of_sample(v.map, v.batch, where) for v in (a, b)))
        return where, ids_a, ids_b

    def _pairs(
        self, a: Tensor, b: Tensor, function: Any, args: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Tensor:
        merged, differ = merge(a, b)
        if not bool(differ.any()):
            return merged
        one, other = a[differ], b[differ]
        pairs, place = torch.stack((one, other)).unique(dim=1, return_inverse=True)
        # in the order in which elements read them, so that labels in order need no index
        order = by_first_occurrence(place, pairs.shape[1])
        ids = [Operand(ids) for ids in pairs[:, order]]
        new = self.label(function, *ids, *args, shape=(len(order),), elementwise=True, kwargs=options or {})
        return merged.masked_scatter(differ, new[order.argsort()[place]])


def merge(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of either where the other has none, and the places at which both have ids that differ."""
    return torch.where(a == NONE, b, a), (a != b) & (a != NONE) & (b != NONE)
