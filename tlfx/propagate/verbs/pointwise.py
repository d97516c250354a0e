"""Point-wise verbs: one value, or the product, quotient or choice of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import schema
from tlfx.graph.nodes import computes_same
from tlfx.operations import Operation
from tlfx.propagate.labels import NodeFunction
from tlfx.propagate.maps import NONE, compact, ids_of_sample, map_of_ids
from tlfx.propagate.values import Role, Spectrum, Value
from tlfx.propagate.verbs.pending import carry_masses, to_rank, with_bias
from tlfx.propagate.verbs.residual import Residual

__all__ = ["Pointwise"]


class Pointwise(Residual):
    """Verbs of element-wise operators."""

    def monotone(self, x: Value) -> Value:
        """Point-wise, by a function that is monotone in each argument, so that bounds of indices stay known."""
        return self._bounded(self.pointwise(x))

    def remainder(self, x: Value, divisor: Any, floored: bool = True) -> Value:
        """Point-wise, by the remainder of a division, which is rounded down (``floored``) or towards zero; of an index,
        less than the divisor."""
        least = float("-inf") if floored else 0
        return self._bounded_remainder(self.pointwise(x), x, self.number(divisor), least)

    def normalise(self, x: Value, axes: Sequence[int]) -> Value:
        """Point-wise transformation, Y ← Y, by statistics over ``axes`` (Table 10)."""
        return self.of_batch() if self.is_over_batch(x, axes) else with_bias(self.pointwise(x))

    def normalise_groups(self, x: Value, groups: int) -> Value:
        """The same by statistics over all axes but the first, for groups along the second."""
        if x.is_content and x.batch_axis.axis == 1:
            # samples of which each is some channels, as those of a fast layer norm
            shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
            grouped = replace(x.with_maps(compact(x.expanded()[0].reshape(shape))), shape=shape)
            if self.is_over_batch(grouped, range(2, len(shape))):
                return self.of_batch()
        return self.normalise(x, range(2, len(x.shape)))

    def logarithm(self, x: Value) -> Value:
        """Point-wise; of a sum of exponentials, what turns these into those of a softmax when it is subtracted."""
        exp = x.sum_of if x.sum_of is not None and x.sum_of.target is torch.ops.aten.exp.default else None
        return replace(self.pointwise(x), log_sum_of=exp and exp.all_input_nodes[0])

    def dropout(self, x: Value) -> Value:
        """Point-wise, except that mixing weights are read before dropout (eq. 9)."""
        out = self.linear(x)
        if x.softmax_dim is None:
            return out
        # dropout_ overwrites the weights, so that those before it cannot be read
        in_place = schema(self.target).is_mutable
        return out if in_place else replace(out, node=x.node, softmax_dim=x.softmax_dim, softmax_of=x.softmax_of)

    def softmax(self, x: Value, axis: int, sums_to_one: bool = True) -> Value:
        """Point-wise; over tokens, or of a context kᵀv, the output is a mixing weight."""
        axis = axis % len(x.shape)
        if self.is_over_batch(x, [axis]):
            return self.of_batch()
        # channel attention, such as that of XCiT: the softmax of kᵀq mixes channels
        if x.role is Role.CONTEXT:
            self._state.contexts.reclassify(x.node)
            return replace(self.weight(), softmax_dim=axis)
        scores = self._state.scores.get(x.subject)
        # the softmax is over the keys of scores that were joined with those of learned keys
        if scores and x.shape == self.shape and scores[0].shape[axis] == 1:
            x = x.with_maps(*scores, role=Role.WEIGHT)
        out = self.pointwise(x)
        over_tokens = x.role is Role.WEIGHT or x.map.shape[axis] > 1
        of = self.node if sums_to_one else None
        if not over_tokens:  # parts of it may be gates of several values
            return replace(out, softmax_of=of)
        return replace(out, softmax_dim=axis if sums_to_one else None, softmax_of=of, function_of=None, weighs=True)

    def product(self, a: Value, b: Value) -> Value:
        """Product: point-wise with a factor that is broadcast along any axis; of two full values, their average."""
        a, b = self._beside_content(a, b)
        pair = self._masked(a, b) or self._one_of(a, b, keep=Role.CONTENT)
        if pair is not None:
            self._note_branch_scale(a, b)
            pair = replace(pair, spectrum=_filtered(a, b) or _filtered(b, a))
            content = [v for v in (a, b) if v.is_content]
            if Role.CONTEXT in (a.role, b.role) and content:
                return self._with_factors(pair, a, b)
            if not (content and pair.is_content):
                return self._bounded(pair)
            if self._only_masks(a, b):
                return self._bounded(self._masked_mass(pair, content[0]))
            return self._weighted_product(pair, content[0], b if content[0] is a else a)
        self.record(Operation.POINTWISE)
        if self._have_one_map(a, b):
            return self._product_of_functions(a, b)
        gated = self._gated(a, b)
        if gated is None:
            return self._with_factors(self._with_factors_of(self._averaged(a, b), [a, b]), a, b)
        out = replace(self._weighted_product(self._shaped(gated[0]), *gated), weighs=gated[0].weighs)
        return self._with_factors(out, a, b)

    def _with_factors(self, out: Value, a: Value, b: Value) -> Value:
        """A product ``out`` with its factors, if both are broadcast."""
        full, rank = [self._is_full(v) for v in (a, b)], len(self.shape)
        out = replace(out, is_gate=all(v.is_gate or not f for v, f in zip((a, b), full, strict=True)))
        if any(full):
            return out
        return replace(out, factors=((a, range(rank - len(a.shape), rank)), (b, range(rank - len(b.shape), rank))))

    def masked(self, x: Value, mask: Value, hides: bool = False) -> Value:
        """Zero where a mask that is not known at capture does not hold, or where it does (``hides``): a product."""
        if not x.is_content:
            return self.pointwise(x)
        shown = NodeFunction(torch.logical_not, mask.node) if hides else mask.read
        return self.product(x, replace(mask, read_as=shown))

    def _product_of_functions(self, a: Value, b: Value) -> Value:
        """The product of two functions of the same tokens: another one, unless one of them is a weight or broadcast.

        It is a weighted value too if it is divided by the sum of one of them, as in Σ x·exp(x) / Σ exp(x).
        """
        out, gated = self._shaped(a), self._gated(a, b)
        if self._have_one_subject(a, b):
            out = replace(out, function_of=a.subject)
        elif self._have_one_base(a, b) or gated is None:
            out = self._with_factors_of(out, [a, b])
        else:
            out = replace(self._weighted_product(out, *gated), weighs=gated[0].weighs)

        def masses(x: Value, factor: Value) -> Callable[[], Tensor]:
            return lambda: self._by_element_of(self._weighted_product(self._shaped(x), x, factor))

        return replace(out, by_factor={w.summand: (masses(x, w), False) for x, w in ((a, b), (b, a))})

    def _normalised(self, out: Value, a: Value, b: Value) -> Value | None:
        """A quotient ``out`` of a product by the sum of one of its factors, or of weights by their sum, which are then
        those of a softmax. None for any other."""
        if not b.is_content or b.sum_of is None:
            return None
        one, other = (to_rank(v.map, len(self.shape)) for v in (a, b))
        over_tokens = one.numel() > other.numel()
        # exp(x) / Σ exp(x)
        if over_tokens and a.sum_of is None and computes_same(b.sum_of, a.summand):
            return replace(out, weighs=True, function_of=None)
        # Σ x·w / Σ w: by the masses that w gives
        factors = [masses for node, masses in a.by_factor.items() if computes_same(b.sum_of, node)]
        if not factors:
            return None
        masses, summed = factors[0]
        if not (over_tokens or (summed and one.shape == other.shape)):
            return None
        product = self._product(out, replace(a, by_element=masses), b, None, None, inverse=True)
        each = self._masses(replace(product, normalises=True), by_element=True)
        ids, labels = (ids_of_sample(m, self.batch, out.batch_axis) for m in (each, out.map))
        pending = self._sum_of_masses(ids, [i for i, n in enumerate(labels.shape) if n == 1])
        out = replace(out, pending=map_of_ids(pending, self.batch, out.batch_axis), by_element=lambda: each)
        if not summed:
            return out
        return replace(out, maps=(map_of_ids(self._without_mass(pending), self.batch, out.batch_axis),))

    def _with_factors_of(self, out: Value, factors: Sequence[Value]) -> Value:
        """A product or quotient ``out`` of values that are both content: with the masses that they have as products."""
        massed = [v for v in factors if v.pending is not None]
        if len(massed) != 1 or not torch.equal(*torch.broadcast_tensors(self._shaped(massed[0]).map, out.map)):
            return self._with_masses_of(out, massed)
        (x,) = massed
        out = replace(out, origin=x.source, factored=x.base, function_of=None)
        return carry_masses(out, x, lambda m: to_rank(m, len(self.shape)))

    def _gated(self, a: Value, b: Value) -> tuple[Value, Value] | None:
        """Two values with content, the second a gate of the first: one that is a weight of the tokens, is broadcast, or
        has the same label for all tokens. None if neither is."""
        full = [self._is_full_of_content(v) and not v.is_gate for v in (a, b)]
        maps = [self._shaped(v).map for v in (a, b)]
        if a.weighs != b.weighs and _has_tokens(b if a.weighs else a):
            return (b, a) if a.weighs else (a, b)
        if full[0] != full[1]:
            return (a, b) if full[0] else (b, a)
        if torch.equal(*torch.broadcast_tensors(*maps)):
            return None if full[0] else (a, b)
        of_sample = [sum(n > 1 for n in m.shape) <= 1 for m in maps]  # one label for all tokens
        if full[0] and of_sample[0] != of_sample[1]:
            return (b, a) if of_sample[0] else (a, b)
        return None

    def scaled(self, x: Value, factor: float) -> Value:
        """Product with a number: point-wise; nothing is left of content times zero."""
        if factor == 0:
            return self.constant(number=0)
        self._note_scale(x, factor)
        return self.linear(x, self.number(factor))

    def numerator(self, a: Value, b: Value) -> Value:
        """Quotient: the label of the numerator, or that of the denominator under a constant."""
        self._check_samples(a, b)
        if self._is_softmax_of_context(a, b):
            return self.softmax(a, next(i for i, n in enumerate(b.shape) if n != a.shape[i]))
        if not a.is_content:
            return self.pointwise(b if a.is_constant else a)
        out = self.pointwise(a)
        normalised = self._normalised(out, a, b)
        if normalised is not None:
            return normalised
        if self._have_one_subject(a, b):
            return out
        if b.is_content and self._gated(a, b) is None:
            return self._with_factors_of(out if self._have_one_map(a, b) else self._averaged(a, b), [a])
        if self._have_one_base(a, b):
            return self._with_factors_of(out, [a])
        return self._weighted_product(out, a, b, inverse=True)

    def _is_softmax_of_context(self, a: Value, b: Value) -> bool:
        """Whether a quotient is a softmax of a context that is written out: exponentials by their sum along an axis."""
        if a.role is not Role.CONTEXT or b.sum_of is None or b.sum_of.target is not torch.ops.aten.exp.default:
            return False
        summed = len(a.shape) == len(b.shape) and sum(n != m for n, m in zip(a.shape, b.shape, strict=True)) == 1
        return summed and computes_same(b.sum_of, a.summand)

    def interpolate(self, a: Value, b: Value, share: Any) -> Value:
        """a·(1 − share) + b·share: a residual connection, of two products if the share depends on the image."""
        if not isinstance(share, Value) or share.is_constant:
            known = self.number(share)
            return self.residual(a, b, None if known is None else (1 - known, known))
        # no node of the graph holds 1 - share
        rest = replace(share, read_as=NodeFunction(torch.rsub, share.node, {"other": 1}))
        return self.residual(self.product(a, rest), self.product(b, share))

    def either(self, a: Value, b: Value, first: Tensor | None = None) -> Value:
        """Element-wise choice between two values (maximum, where): the average of differing labels, unless ``first``
        (bool) says where the first is chosen."""
        a, b = self._beside_content(a, b)
        if first is not None and (a.is_content or b.is_content):
            self.record(Operation.POINTWISE)
            return self._chosen(first, a, b)
        pair = self._one_of(a, b, keep=Role.CONTENT)
        if pair is not None:
            return self._bounded(pair)
        self.record(Operation.POINTWISE)
        return self._averaged(a, b)

    def _only_masks(self, a: Value, b: Value) -> bool:
        """Whether a product is one of content, not yet a product, with a known mask of ones and zeros."""
        pair = self._content_and_mask(a, b)
        if pair is None or pair[0].pending is not None or pair[0].by_element is not None:
            return False
        known = self._state.constants.decide(pair[1].node)
        return isinstance(known, Tensor) and bool(((known == 0) | (known == 1)).all())

    def _masked_mass(self, out: Value, x: Value) -> Value:
        """Content ``out`` that a mask leaves of ``x``, with the mass of the product that this may be."""

        def shown(content: Tensor) -> Tensor:
            return compact(torch.where(out.map == NONE, NONE, to_rank(content, len(out.shape))))

        return replace(out if x.mass is None else carry_masses(out, x, shown), origin=x.source)

    def _content_and_mask(self, a: Value, b: Value) -> tuple[Value, Value] | None:
        """Content and the constant that it is multiplied by; None for any other product, and for a parameter."""
        x, mask = (a, b) if a.is_content else (b, a)
        fits = x.is_content and mask.is_constant and not self._state.constants.is_learned(mask.node)
        return (x, mask) if fits else None

    def _masked(self, a: Value, b: Value) -> Value | None:
        """Content times a known mask: nothing is left where that is zero. None for any other product."""
        pair = self._content_and_mask(a, b)
        if pair is None:
            return None
        x, mask = pair
        number, known = self.number(mask), self._state.constants.decide(mask.node)
        if number == 0:
            return self.constant(number=0)
        if number is not None or not isinstance(known, Tensor) or bool(known.all()):
            return None
        self.record(Operation.POINTWISE)
        out = self._shaped(x)
        return self.content(torch.where(known == 0, NONE, out.map))


def _has_tokens(x: Value) -> bool:
    """Whether content has different labels within a sample."""
    return x.ids.numel() > 1


def _filtered(x: Value, factor: Value) -> Spectrum | None:
    """The spectrum of a value times a constant."""
    if x.spectrum is None or not factor.is_constant:
        return None
    return replace(x.spectrum, filters=(*x.spectrum.filters, factor))
