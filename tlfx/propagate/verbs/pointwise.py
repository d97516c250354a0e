"""Point-wise verbs: one value, or the sum, product or quotient of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx._torch import schema
from tlfx.errors import InputError, ProvenanceError
from tlfx.graph.residuals import content_graph, skip_of
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand, by_first_occurrence
from tlfx.propagate.values import NONE, Role, Spectrum, Value, compact, ids_of_sample, image_map
from tlfx.propagate.verbs.pending import Pending
from tlfx.runtime import BatchAxis
from tlfx.runtime.weighted import BranchScale

__all__ = ["Pointwise"]


class Pointwise(Pending):
    """Verbs of element-wise operators."""

    def pointwise(self, x: Value) -> Value:
        """Point-wise transformation, Y ← Y, of one value, alone or combined with constants."""
        self.record(Operation.WEIGHT if x.role is Role.WEIGHT else Operation.POINTWISE)
        alone = self.shape == x.shape and len(self.node.all_input_nodes) == 1
        return replace(self._shaped(x), elements=x.elements if alone else None, function_of=x.subject)

    def linear(self, x: Value, scale: float | None = 1) -> Value:
        """The same by a linear function, such as a sum with a constant, or a product with the number ``scale``."""
        return self._scaled_mass(x, self.pointwise(x), scale)

    def normalise(self, x: Value, axes: Sequence[int]) -> Value:
        """Point-wise transformation, Y ← Y, by statistics over ``axes`` (Table 10)."""
        return self.of_batch() if self.is_over_batch(x, axes) else self.pointwise(x)

    def dropout(self, x: Value) -> Value:
        """Point-wise, except that mixing weights are read before dropout (eq. 9)."""
        out = self.linear(x)
        if x.softmax_dim is None:
            return out
        in_place = schema(self.target).is_mutable
        return replace(out, node=out.node if in_place else x.node, softmax_dim=None if in_place else x.softmax_dim)

    def softmax(self, x: Value, axis: int, sums_to_one: bool = True) -> Value:
        """Point-wise; over tokens, or of a context kᵀv, the output is a mixing weight."""
        axis = axis % len(x.shape)
        if self.is_over_batch(x, [axis]):
            return self.of_batch()
        if x.role is Role.CONTEXT:
            self.state.contexts.reclassify(x.node)
            return replace(self.weight(), softmax_dim=axis)
        out = self.pointwise(x)
        over_tokens = x.role is Role.WEIGHT or x.map.shape[axis] > 1
        return replace(out, softmax_dim=axis if sums_to_one else None, function_of=None) if over_tokens else out

    def residual(self, a: Value, b: Value, scales: Sequence[float] | None = (1, 1)) -> Value:
        """Sum of two values: residual connection, Y ← Norm(Y + g(Y)) (eq. 11), the average of differing labels unless
        the policy says otherwise.

        Point-wise where one of the two is a constant, or a statistic that is subtracted from the other. ``scales`` are
        the factors by which the operator multiplies the two, None if they are not known at capture.
        """
        out = self._residual(a, b, scales)
        return replace(out, function_of=a.subject) if self._have_one_subject(a, b) else out

    def _residual(self, a: Value, b: Value, scales: Sequence[float] | None) -> Value:
        counted = [v for v, scale in zip((a, b), scales or (1, 1), strict=True) if self.number(scale) != 0]
        if len(counted) < 2:
            return self.linear(counted[0]) if counted else self.constant(number=0)
        a, b = self._beside_content(a, b)
        pair = self._one_of(a, b, keep=Role.WEIGHT)
        if pair is not None:
            return self._scaled_mass(b if a.is_constant else a, pair, 1) if a.is_constant or b.is_constant else pair
        if scales is not None and (a.source is b.source or (a.pending is not None and b.pending is not None)):
            return self._sum_of_products(a, b, scales)
        if scales is not None:
            for x, statistic, signs in ((a, b, scales), (b, a, scales[::-1])):
                if self._is_centred(x, statistic, signs):
                    self.record(Operation.POINTWISE)
                    return self._shaped(x)
        self.record(Operation.RESIDUAL)
        return self._summed(a, b, scales)

    def _sum_of_products(self, a: Value, b: Value, scales: Sequence[float]) -> Value:
        """A sum of two products with factors, or of parts of one value: a contraction, both labels by mass."""
        where, ids_a, ids_b = self._side_by_side(a, b)
        merged, differ = _merged(ids_a, ids_b)
        plain = self.from_ids(compact(merged), where)
        products = any(v.pending is not None or v.mass is not None for v in (a, b)) or tuple(map(abs, scales)) != (1, 1)
        if not bool(differ.any()) or not products:
            self.record(Operation.RESIDUAL)
            out = self._averaged(a, b) if bool(differ.any()) else plain
            return replace(out, origin=a.source, mass=lambda: self._mass_of_sum(a, b, plain, scales))
        self.record(Operation.SPATIAL_MIX)
        pending = self._mass_of_sum(a, b, plain, scales)
        ids = self._without_mass(ids_of_sample(pending, self.batch, where))
        return replace(self.from_ids(compact(ids), where), origin=a.source, pending=pending)

    def product(self, a: Value, b: Value) -> Value:
        """Product: point-wise with a factor that is broadcast along any axis; of two full values, their average."""
        a, b = self._beside_content(a, b)
        pair = self._masked(a, b) or self._one_of(a, b, keep=Role.CONTENT)
        if pair is not None:
            self._note_branch_scale(a, b)
            pair = replace(pair, spectrum=_filtered(a, b) or _filtered(b, a))
            content = [v for v in (a, b) if v.is_content]
            return self._weighed(pair, content[0], b if content[0] is a else a) if content and pair.is_content else pair
        self.record(Operation.POINTWISE)
        if self._have_one_subject(a, b):
            return replace(self._shaped(a), function_of=a.subject)
        gated = self._gated(a, b)
        if gated is None:
            return self._averaged(a, b)
        out = self._weighed(self._shaped(gated[0]), *gated)
        return out if self._is_full(a) or self._is_full(b) else replace(out, outer=(a, b))

    def _gated(self, a: Value, b: Value) -> tuple[Value, Value] | None:
        """Two values with content, the second a gate of the first: one that is broadcast, or has the same label for all
        tokens. None if neither is."""
        full = [self._is_full(v) for v in (a, b)]
        maps = [self._shaped(v).map for v in (a, b)]
        if full[0] != full[1]:
            return (a, b) if full[0] else (b, a)
        if torch.equal(*torch.broadcast_tensors(*maps)):
            return a, b
        of_sample = [sum(n > 1 for n in m.shape) <= 1 for m in maps]  # one label for all tokens
        if full[0] and of_sample[0] != of_sample[1]:
            return (b, a) if of_sample[0] else (a, b)
        return None

    def _is_full(self, x: Value) -> bool:
        """Whether a value has the shape of the output and is not repeated along any of its axes."""
        return x.shape == self.shape and all(n == 1 or own for n, own in zip(x.shape, self._own_axes(x), strict=True))

    def scaled(self, x: Value, factor: float) -> Value:
        """Product with a number: point-wise; nothing is left of content times zero."""
        if factor == 0:
            return self.constant(number=0)
        self._note_scale(x, factor)
        return self.linear(x, self.number(factor))

    def numerator(self, a: Value, b: Value) -> Value:
        """Quotient: the label of the numerator, or that of the denominator under a constant."""
        self._check_samples(a, b)
        if not a.is_content:
            return self.pointwise(b if a.is_constant else a)
        out = self.pointwise(a)
        return out if self._have_one_subject(a, b) else self._weighed(out, a, b, inverse=True)

    def _have_one_subject(self, a: Value, b: Value) -> bool:
        """Whether two values are functions of the same elements, such as x and sigmoid(x), or x and its norm: their
        product or quotient is another element-wise function of these, or a normalisation, and not a weighted value."""
        if not (a.is_content and b.is_content and a.subject is b.subject and (self._is_full(a) or self._is_full(b))):
            return False
        return torch.equal(*torch.broadcast_tensors(*(self._shaped(v).map for v in (a, b))))

    def either(self, a: Value, b: Value, first: Tensor | None = None) -> Value:
        """Element-wise choice between two values (maximum, where): the average of differing labels, unless ``first``
        (bool) says where the first is chosen."""
        a, b = self._beside_content(a, b)
        if first is not None and (a.is_content or b.is_content):
            self.record(Operation.POINTWISE)
            one, other = (self._beside(v, b if v is a else a).expanded() for v in (a, b))
            return self.content(torch.where(first, one[0], other[0]))
        pair = self._one_of(a, b, keep=Role.CONTENT)
        if pair is not None:
            return pair
        self.record(Operation.POINTWISE)
        return self._averaged(a, b)

    def _beside(self, x: Value, known: Value) -> Value:
        """A value in the shape of the output; one without content has the label of padding or of a learned token."""
        if x.is_content:
            return self._shaped(x)
        where = self._shaped(known).batch_axis
        blank = torch.tensor(NONE) if self.number(x) is not None else image_map(self.shape, self.batch, where)
        return Value(self.node, self.shape, self.batch, Role.CONTENT, (blank,))

    def _masked(self, a: Value, b: Value) -> Value | None:
        """Content times a known mask: nothing is left where that is zero. None for any other product."""
        x, mask = (a, b) if a.is_content else (b, a)
        if not (x.is_content and mask.is_constant) or self.state.constants.is_learned(mask.node):
            return None
        number, known = self.number(mask), self.state.constants.decide(mask.node)
        if number == 0:
            return self.constant(number=0)
        if number is not None or not isinstance(known, Tensor) or bool(known.all()):
            return None
        self.record(Operation.POINTWISE)
        out = self._shaped(x)
        return self.content(torch.where(known == 0, NONE, out.map))

    def _one_of(self, a: Value, b: Value, keep: Role) -> Value | None:
        """The result where one of two operands decides: with a constant, of two weights, or of a weight and content."""
        if a.is_constant or b.is_constant:
            return self.pointwise(b if a.is_constant else a)
        if Role.CONTEXT in (a.role, b.role):
            return self._beside_context(a, b)
        if a.role is b.role:
            return self.pointwise(a if a.maps else b) if a.role is Role.WEIGHT else None
        weight, content = (a, b) if a.role is Role.WEIGHT else (b, a)
        gates = self._is_full(weight) and not self._is_full(content)
        as_weight = bool(weight.maps) and (keep is Role.WEIGHT or gates)
        return self.pointwise(weight if as_weight else content)

    def _beside_content(self, a: Value, b: Value) -> tuple[Value, Value]:
        """A context combined with a value with content of the full shape is content itself."""
        self._check_samples(a, b)
        full = any(v.is_content and v.shape == self.shape for v in (a, b))
        return (self.resolve(a), self.resolve(b)) if full else (a, b)

    def _check_samples(self, a: Value, b: Value) -> None:
        """Raise ProvenanceError where two values with content have their samples at different places."""
        if a.is_content and b.is_content and self.batch > 1:
            places = {(v.batch_axis.axis - len(v.shape), *v.batch_axis[1:]) for v in (a, b)}
            if len(places) > 1:
                raise ProvenanceError(
                    f"{self.node.name} combines a sample of the batch with another sample; labels belong to one sample "
                    "each. Align the part of the model before it instead."
                )

    def _beside_context(self, a: Value, b: Value) -> Value:
        context, other = (a, b) if a.role is Role.CONTEXT else (b, a)
        self.record(Operation.POINTWISE)
        return self._shaped(other if other.role is Role.WEIGHT and other.shape == self.shape else context)

    def _is_centred(self, x: Value, statistic: Value, scales: Sequence[float]) -> bool:
        """Whether a sum is a value less a statistic of itself, such as its mean: a part of a normalisation."""
        of = statistic.statistic
        return of is not None and of[0] is x.source and x.statistic is None and scales[0] * scales[1] * of[1] < 0

    def _shaped(self, x: Value) -> Value:
        """The value broadcast to the shape of the output."""
        lead = len(self.shape) - len(x.shape)
        maps = tuple(m.reshape([1] * lead + list(m.shape)) if lead else m for m in x.maps)
        return Value(self.node, self.shape, self.batch, x.role, maps)

    def _note_branch_scale(self, a: Value, b: Value) -> None:
        for content, factor in ((a, b), (b, a)):
            if content.is_content and factor.is_constant and content.shape == self.shape:
                self._note_scale(content, factor.node)

    def _note_scale(self, x: Value, factor: Any) -> None:
        """Note the factor of a branch; the product has the layout of ``x``."""
        if self.policy.residual == "gated":
            self.state.scales.note(self.node, x.node, factor, layout=x)

    def _scales_of(self, x: Value) -> Iterator[BranchScale]:
        """The scales of a summand, as :func:`tlfx.runtime.residual_by_scale` takes them."""
        for factor, layout in self.state.scales.of(x.node):
            yield factor, len(layout.shape), layout.batch_axis

    def _is_branch(self, a: Value, b: Value) -> bool:
        """Whether the first of two summands is the branch g of a residual connection, not its skip path."""
        graph = content_graph(self.state.operations, self.state.regions.sources_of)
        skip = skip_of(graph, [v.node for v in (a, b) if v.node in graph])
        return b.node not in skip[1] if skip else a.node not in graph

    def _summed(self, a: Value, b: Value, scales: Sequence[float] | None) -> Value:
        """The label of a sum of differing labels, by the policy."""
        residual = self.policy.residual
        if residual == "skip":
            return self._of_branch(a, b)
        _, differ = _merged(*self._side_by_side(a, b)[1:])
        if residual == "average" or not bool(differ.any()):
            return self._averaged(a, b)
        if scales is None or self.node in (a.node, b.node):
            raise InputError(
                f"residual={residual!r} needs both summands of {self.node.name}, which computes one of them, or its "
                "scale, itself: use residual='average', or write it as two operators"
            )
        sizes = tuple(map(abs, scales))
        weights = {} if sizes == (1, 1) else {"scales": sizes}
        if residual == "norm":
            return self._by_norm(a, b, weights)
        scales_of = [list(self._scales_of(v)) for v in (a, b)]
        if not weights and not any(scales_of):
            return self._averaged(a, b)
        return self._averaged(a, b, runtime.residual_by_scale, scales_of, weights)

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

    def _by_norm(self, a: Value, b: Value, weights: dict[str, Any]) -> Value:
        """Differing ids by the norms of the two values, each place by itself."""
        where, ids_a, ids_b = self._side_by_side(a, b)
        merged, differ = _merged(ids_a, ids_b)
        channels = [axis for axis, size in enumerate(differ.shape) if size == 1]
        new = self.label(
            runtime.residual_by_norm,
            Operand(ids_a[differ]),
            Operand(ids_b[differ]),
            a.node,
            b.node,
            differ.flatten().nonzero().flatten(),
            shape=(int(differ.sum()),),
            elementwise=True,
            after=self.node.prev,  # an in-place sum overwrites one of them
            kwargs={"where": where, "over": channels, **weights},
        )
        return self.from_ids(compact(merged.masked_scatter(differ, new)), where)

    def _of_branch(self, a: Value, b: Value) -> Value:
        """The label of the branch g, and of the skip path where g has none."""
        branch, skip = (a, b) if self._is_branch(a, b) else (b, a)
        one, other = torch.broadcast_tensors(*(self._shaped(v).map for v in (branch, skip)))
        return self.content(torch.where(one == NONE, other, one))

    def _pairs(
        self, a: Tensor, b: Tensor, function: Any, args: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Tensor:
        merged, differ = _merged(a, b)
        if not bool(differ.any()):
            return merged
        one, other = a[differ], b[differ]
        pairs, place = torch.stack((one, other)).unique(dim=1, return_inverse=True)
        order = by_first_occurrence(place, pairs.shape[1])
        ids = [Operand(ids) for ids in pairs[:, order]]
        new = self.label(function, *ids, *args, shape=(len(order),), elementwise=True, kwargs=options or {})
        return merged.masked_scatter(differ, new[order.argsort()[place]])


def _merged(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of either where the other has none, and the places at which both have ids that differ."""
    return torch.where(a == NONE, b, a), (a != b) & (a != NONE) & (b != NONE)


def _filtered(x: Value, factor: Value) -> Spectrum | None:
    """The spectrum of a value times a constant."""
    if x.spectrum is None or not factor.is_constant:
        return None
    return replace(x.spectrum, filters=(*x.spectrum.filters, factor))
