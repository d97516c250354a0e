"""Contractions: linear layers, matrix products and einsum. The effect on labels follows from the content of the
contracted axes: channels of one token, tokens, or tokens and channels merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tlfx.operations import Operation
from tlfx.propagate.maps import NONE, fill_none, find_batch_axis, image_map, map_of_ids
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.mixing import Term
from tlfx.propagate.verbs.pending import with_bias
from tlfx.propagate.verbs.subscripts import ContractionAxes, Subscripts, arrange
from tlfx.propagate.verbs.weighted_sums import WeightedSums, is_product, places
from tlfx.runtime import BatchAxis

__all__ = ["Contraction"]


class Contraction(WeightedSums):
    """Verbs of operators that multiply two values and sum over an axis."""

    def contract(self, x: Value, axis: int, weight: Value, bias: Value | None = None) -> Value:
        """A linear layer along an axis of ``x``, with ``weight`` (out, in, *ones).

        Channel mixing, Y ← Y, along channels; spatial mixing, Y ← Norm(|W|)·Y, along tokens that each have their own
        channels, or along an axis of tokens and their channels if the output has the same (permutators); aggregation,
        Y ← Norm(Σ Yᵢ), along any other axis that holds several tokens and their channels.
        """
        subscripts = [str(i) for i in range(len(x.shape))]
        contracted = subscripts[axis]
        out = ["out" if c == contracted else c for c in subscripts]
        # the window of a 1x1 kernel (out, in, 1, 1)
        ones = [f"one{i}" for i in range(len(weight.shape) - 2)]
        mixed = self.multiply(x, subscripts, weight, ["out", contracted, *ones], out)
        return mixed if bias is None else with_bias(mixed)

    def multiply(self, a: Value, of_a: Sequence[str], b: Value, of_b: Sequence[str], out: Sequence[str]) -> Value:
        """Contract two values, with a subscript for each axis, over the subscripts that ``out`` lacks."""
        of_a, of_b, out = tuple(of_a), tuple(of_b), tuple(out)
        if Role.CONTEXT in (a.role, b.role):
            if a.is_content or b.is_content:
                query, context = ((a, of_a), (b, of_b)) if a.is_content else ((b, of_b), (a, of_a))
                mixed = self._read_context(*query, *context, out)
                if mixed is not None:
                    return mixed
            a, b = self.resolve_all(a, b)
        if a.is_content and b.is_content:
            # two contents: kᵀv, q·kᵀ, or products of the same tokens
            product = self._multiply_contents(_of_one_label(a), of_a, _of_one_label(b), of_b, out)
            is_outer = product.is_content and self._broadcast((a, of_a), (b, of_b), out) == [True, True]
            return replace(product, factors=((a, places(of_a, out)), (b, places(of_b, out)))) if is_outer else product
        if a.is_content or b.is_content:
            (x, of_x), (w, of_w) = ((a, of_a), (b, of_b)) if a.is_content else ((b, of_b), (a, of_a))
            return self._multiply_by_weight(w, of_w, x, of_x, out)
        return self._combine_weights(a, of_a, b, of_b, out)

    def _multiply_contents(self, a: Value, of_a: Subscripts, b: Value, of_b: Subscripts, out: Subscripts) -> Value:
        terms = ((a, of_a), (b, of_b))
        axes_a, axes_b = self._axes(a, of_a, of_b, out), self._axes(b, of_b, of_a, out)
        if axes_a.tokens and axes_b.tokens:
            return self._multiply_tokens(*terms, out)
        # the one whose tokens are contracted is mixed, the other is the weight
        if axes_a.tokens or axes_b.tokens:
            return self._multiply_by_weight(*((b, of_b, a, of_a) if axes_a.tokens else (a, of_a, b, of_b)), out)
        maps = [map_of_ids(s.content.pick(s.out), self.batch, s.content.where_in(out)) for s in (axes_a, axes_b)]
        one, other = torch.broadcast_tensors(*maps)
        alike, gate = torch.equal(one, other), self._gate_of(*terms, out)
        elementwise = gate is None and alike and set(of_a) == set(of_b) == set(out)
        if elementwise and of_a == of_b == out:
            return self.product(a, b)
        # x * softmax(x): the softmax is the gate, even if neither is broadcast
        if a.weighs != b.weighs and is_product(*terms, out):
            gate = int(b.weighs)
        if elementwise and a.weighs == b.weighs:
            self.record(Operation.POINTWISE)
            factors = [replace(v, pending=arrange(v.pending, of, out)) for v, of in terms if v.pending is not None]
            return self._with_masses_of(self.content(one), factors)
        if gate is not None:
            self.record(Operation.POINTWISE)
            (x, of_x), (w, of_w) = terms if gate != 0 else reversed(terms)
            return self._weighted_product(self.content(maps[gate == 0]), x, w, places(of_x, out), places(of_w, out))
        are_products = any(v.pending is not None for v in (a, b)) and not {*of_a, *of_b} <= {*out}
        if alike:
            if are_products:
                return self._summed_product(*terms, out)
            self.record(Operation.CHANNEL_MIX)
            return self.content(one)
        if bool(axes_a.varying) != bool(axes_b.varying) and self._broadcast(*terms, out) == [True, True]:
            self.record(Operation.POINTWISE)  # a vector of the image times a gate of tokens: both are content
            return self._averaged(*(self.content(m) for m in maps))
        weighted = (a.softmax_of is None) != (b.softmax_of is None)  # branches by a softmax, such as split attention
        mixed = self._mixed_by_matrix(axes_a, axes_b, out, maps, weighted)
        if mixed is not None:
            return mixed
        tokens = self._token_by_token(of_a, of_b, out, maps)
        if tokens is not None and are_products:
            return self._summed_product(*terms, out)
        # what is left has a map for each side, as q·kᵀ has: a weight
        return tokens or self.weight(*maps)

    def _multiply_tokens(self, a: Term, b: Term, out: Subscripts) -> Value:
        """Two contents whose tokens are contracted: a context kᵀv if both have further axes, else one under the other,
        or an element-wise product that is summed."""
        # whether each has axes that the output keeps and the other lacks
        own = [
            any(n > 1 and c in out and c not in other for c, n in zip(of, x.shape, strict=True))
            for (x, of), (_, other) in ((a, b), (b, a))
        ]
        if all(own):
            return self._context(*a, *b, out)
        if any(own):
            first_weighs = a[0].weighs if a[0].weighs != b[0].weighs else own[1]
            return self._multiply_by_weight(*(a if first_weighs else b), *(b if first_weighs else a), out)
        return self._summed_product(a, b, out)

    def _summed_product(self, a: Term, b: Term, out: Subscripts) -> Value:
        """A contraction as an element-wise product and a sum."""
        sizes = {c: n for x, of in (a, b) for c, n in zip(of, x.shape, strict=True)}
        product = self.step([*sizes.values()]).multiply(*a, *b, tuple(sizes))
        return self.sum_to(product, tuple(sizes), out)

    def _gate_of(self, a: Term, b: Term, out: Subscripts) -> int | None:
        """The one of two factors that is broadcast along axes of an element-wise product, 0 or 1; None if both are, or
        neither is."""
        broadcast = self._broadcast(a, b, out)
        return broadcast.index(True) if sum(broadcast) == 1 else None

    def _broadcast(self, a: Term, b: Term, out: Subscripts) -> list[bool]:
        """Whether each factor of an element-wise product is broadcast along any axis; nothing for a contraction."""
        if not is_product(a, b, out):
            return []
        return [any(c not in of and n > 1 for c, n in zip(out, self.shape, strict=True)) for _, of in (a, b)]

    def _mixed_by_matrix(
        self, axes_a: ContractionAxes, axes_b: ContractionAxes, out: Subscripts, maps: list[Tensor], weighted: bool
    ) -> Value | None:
        """Channels of tokens mixed by a matrix that each sample has for all its tokens, such as a mixture of experts;
        None for two values of tokens, and for a product with one vector, which may be the scores of a query, unless it
        is one of weights (``weighted``)."""
        of_sample = [not axes.varying for axes in (axes_a, axes_b)]
        if of_sample[0] == of_sample[1]:
            return None
        tokens = (axes_a, axes_b)[of_sample.index(False)]
        if not weighted and all(self.shape[out.index(c)] == 1 for c in tokens.queries):
            return None
        self.record(Operation.CHANNEL_MIX)
        return self.content(maps[of_sample.index(False)])

    def _token_by_token(self, of_a: Subscripts, of_b: Subscripts, out: Subscripts, maps: list[Tensor]) -> Value | None:
        """The product of two values of the same tokens: the label of the one that the other is broadcast along, or the
        average of both. None if their tokens differ, as those of queries and keys do."""
        one, other = ([c for c, size in zip(out, m.shape, strict=True) if size > 1] for m in maps)
        if one != other:
            return None
        long = [c for c, size in zip(out, self.shape, strict=True) if size > 1]
        factors = [any(c not in subscripts for c in long) for subscripts in (of_a, of_b)]
        if factors[0] != factors[1]:
            self.record(Operation.POINTWISE)
            return self.content(maps[factors.index(False)])
        if len(one) < 2:
            return None
        self.record(Operation.POINTWISE)
        return self._averaged(*(self.content(m) for m in maps))

    def _combine_weights(self, a: Value, of_a: Subscripts, b: Value, of_b: Subscripts, out: Subscripts) -> Value:
        """Products of weights, or of weights and constants, are weights; one side that remains is content."""
        for w, of_w, x, of_x in ((a, of_a, b, of_b), (b, of_b, a, of_a)):
            if w.softmax_of is not None and x.is_constant and self.number(x) is None:
                mixed = self._mix_constants(w, of_w, x, of_x, out)
                if mixed is not None:
                    return mixed
        pairs = [
            [
                arrange(m, subscripts, out)
                for m in v.maps
                if all(m.shape[subscripts.index(c)] == 1 for c in subscripts if c not in out)
            ]
            for v, subscripts in ((a, of_a), (b, of_b))
        ]
        maps = [m for side in pairs for m in side]
        # the keys are summed over: attention to learned values belongs to the query
        if len(maps) == 1:
            self.record(Operation.SPATIAL_MIX)
            return self.content(maps[0])
        return self.weight(*maps[:2])

    def _mix_constants(self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts) -> Value | None:
        """Learned constants mixed by a softmax over tokens, or by a part of one; None for any other product.

        Those of tokens with content are a bias of their values, which has no label; those of other tokens have the
        image-level label (eq. 5), and count by the sum of their weights.
        """
        gone = [c for c in of_w if c in of_x and c not in out]
        if gone != [of_w[-1 if w.softmax_dim is None else w.softmax_dim]]:  # heads, not keys
            return None
        sides = [arrange(m, of_w, out) for m in w.maps if all(m.shape[of_w.index(c)] == 1 for c in gone)]
        if not sides or len(w.maps) < 2:
            return None
        # elements of a map below the batch size have the id IMAGE, as those of learned keys
        if len(sides) < 2 or not any(bool((m < self.batch).all()) for m in sides):
            return self.weight()
        where = find_batch_axis(sides[0], self.batch)
        batch = out[where.axis]
        sizes = {batch: 1, **dict(zip(of_x, x.shape, strict=True))} | {batch: self.shape[where.axis]}
        place = BatchAxis(list(sizes).index(batch), where.outer, where.inner)
        # the constant with an axis for the batch, as content with the label of the image
        tokens = replace(x, role=Role.CONTENT, shape=tuple(sizes.values()), number=None)
        tokens = replace(tokens, maps=(image_map(tokens.shape, self.batch, place),))
        axes = self._axes(tokens, tuple(sizes), of_w, out)
        self.record(Operation.SPATIAL_MIX)
        return self._as_part(self._from_axes(axes.content.ids, axes.content.subscripts, axes, out), w, of_w, axes, out)


def _of_one_label(x: Value) -> Value:
    """Content of which all elements have one label, but for zeros: these too."""
    if x.pending is not None or not bool((x.map == NONE).any()):
        return x
    filled = fill_none(x.map, [a for a in range(x.map.dim()) if a != x.batch_axis.axis])
    return x if filled is x.map else replace(x, maps=(filled,))
