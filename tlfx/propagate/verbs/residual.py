"""Sums of two values: residual connections (eq. 11), contractions written as sums, and centred values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import InputError, ProvenanceError
from tlfx.graph.nodes import computes_same
from tlfx.graph.residuals import content_graph, residual_arms
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import NONE, compact, ids_of_sample
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.combined import Combined, merge
from tlfx.propagate.verbs.pending import are_of_one_measure, to_rank, with_bias
from tlfx.runtime.weighted import BranchScale

__all__ = ["Residual"]


class Residual(Combined):
    """Verbs of sums, and the policies of their labels."""

    def residual(self, a: Value, b: Value, scales: Sequence[float] | None = (1, 1)) -> Value:
        """Sum of two values: residual connection, Y ← Norm(Y + g(Y)) (eq. 11), the average of differing labels unless
        the policy says otherwise.

        Point-wise where one of the two is a constant, or a statistic that is subtracted from the other. ``scales`` are
        the factors by which the operator multiplies the two, None if they are not known at capture.
        """
        out = self._bounded(self._residual(a, b, scales))
        if a.is_content and b.is_content:
            out = replace(out, is_gate=all(v.is_gate or not self._is_full(v) for v in (a, b)))
        return replace(out, function_of=a.subject) if self._have_one_subject(a, b) else out

    def _residual(self, a: Value, b: Value, scales: Sequence[float] | None) -> Value:
        # add(x, y, alpha=0) is x
        counted = [v for v, scale in zip((a, b), scales or (1, 1), strict=True) if self.number(scale) != 0]
        if len(counted) < 2:
            return self.linear(counted[0]) if counted else self.constant(number=0)
        a, b = self._beside_content(a, b)
        pair = self._one_of(a, b, keep=Role.WEIGHT)
        if pair is not None:
            if not (a.is_constant or b.is_constant):
                return pair
            x, bias = (b, a) if a.is_constant else (a, b)
            out = self._scaled_mass(x, pair, 1)
            return out if self.number(bias) == 0 else with_bias(out)
        self._check_running(a, b, scales)
        # x - log Σ exp(x), or x - mean(x)
        for x, statistic, signs in ((a, b, scales), (b, a, scales[::-1])) if scales is not None else ():
            log_softmax = signs[0] * signs[1] < 0 and self._is_log_softmax(x, statistic)
            if log_softmax or self._is_centred(x, statistic, signs):
                self.record(Operation.POINTWISE)
                where, ids, of_statistic = self._side_by_side(x, statistic)
                # padding is what is subtracted there
                centred = torch.where(ids == NONE, of_statistic, ids)
                return replace(self.from_ids(compact(centred), where), weighs=log_softmax)
        # attention to some keys plus attention to the others, under one softmax
        if scales is not None and a.source is not b.source and self._are_parts_of_one_mixing(a, b):
            return replace(self._sum_of_products(a, b, scales), origin=None, mixed_by=a.mixed_by)
        # a contraction written as a sum, such as a depthwise convolution by shifted maps
        are_products = all(v.pending is not None for v in (a, b))
        # sums of products, as a matrix product makes them, are branches (eq. 11) unless of the same tokens as the other
        are_products = are_products and (not (a.is_sum or b.is_sum) or are_of_one_measure(a, b))
        if scales is not None and (a.source is b.source or are_products or self._are_disjoint_products(a, b)):
            return self._as_sum_of_parts(self._sum_of_products(a, b, scales), a, b, scales)
        self.record(Operation.RESIDUAL)
        out = self._summed(a, b, scales)
        return out if scales is None else self._as_sum_of_parts(out, a, b, scales)

    def _sum_of_products(self, a: Value, b: Value, scales: Sequence[float]) -> Value:
        """A sum of two products with factors, or of parts of one value: a contraction, both labels by mass."""
        where, ids_a, ids_b = self._side_by_side(a, b)
        merged, differ = merge(ids_a, ids_b)
        plain = self.from_ids(compact(merged), where)
        products = any(v.pending is not None or v.mass is not None for v in (a, b)) or tuple(map(abs, scales)) != (1, 1)
        origin = a.source if a.source is b.source else None
        if self._keeps_factors(a, b, differ) or (products and _are_disjoint(ids_a, ids_b)):
            self.record(Operation.RESIDUAL)
            plain = replace(plain, is_sum=a.is_sum and b.is_sum, is_product=a.is_product and b.is_product)
            return replace(plain, origin=origin, pending=self._mass_of_sum(a, b, plain, scales))
        if not bool(differ.any()) or not products:
            self.record(Operation.RESIDUAL)
            out = self._averaged(a, b) if bool(differ.any()) else plain
            return replace(out, origin=origin, mass=lambda: self._mass_of_sum(a, b, plain, scales))
        self.record(Operation.SPATIAL_MIX)
        pending = self._mass_of_sum(a, b, plain, scales)
        ids = self._without_mass(ids_of_sample(pending, self.batch, where))
        is_sum = self._are_of_one_matrix(a, b)
        return replace(self.from_ids(compact(ids), where), origin=origin, pending=pending, is_sum=is_sum)

    def _are_of_one_matrix(self, a: Value, b: Value) -> bool:
        """Whether the sum of two products is one matrix over the tokens of one value."""
        return a.source is b.source or are_of_one_measure(a, b) or self._are_parts_of_one_mixing(a, b)

    def _keeps_factors(self, a: Value, b: Value, differ: Tensor) -> bool:
        """Whether a sum of two products of the same tokens is another product of these; ``differ`` tells where their
        tokens are others."""
        if bool(differ.any()) or a.pending is None or b.pending is None:
            return False
        return (a.is_product and b.is_product) or self._are_of_one_matrix(a, b)

    def _are_disjoint_products(self, a: Value, b: Value) -> bool:
        """Whether a sum puts two values side by side that count by their factors."""
        return self._count_by_masses([a, b]) and _are_disjoint(*self._side_by_side(a, b)[1:])

    def _check_running(self, a: Value, b: Value, scales: Sequence[float] | None) -> None:
        """Raise ProvenanceError for a difference of running sums, or of one and what it is a sum of."""
        if scales is None or scales[0] * scales[1] >= 0 or not (a.is_content and b.is_content):
            return
        both = a.running is not None and b.running is not None
        if both or (a.running or b.running) is (b.source if a.running else a.source):
            raise ProvenanceError(
                f"{self.node.name} subtracts content from its running sum (cumsum); the label of the difference cannot "
                "be computed: sum windows by avg_pool, unfold or a matrix of ones and zeros instead"
            )

    def _is_centred(self, x: Value, statistic: Value, scales: Sequence[float]) -> bool:
        """Whether a sum is a value less a statistic of itself, such as its mean: a part of a normalisation. A statistic
        of other elements of the same value, such as those of its other tokens, is another summand."""
        if scales[0] * scales[1] * self._sign_of_statistic(statistic, x) >= 0:
            return False
        # the mean of a product is computed from its labels with a mass
        massed = () if x.pending is None else (x.with_maps(x.pending),)
        return any(self._is_computed_from(statistic, v) for v in (x, *massed))

    def _is_computed_from(self, x: Value, of: Value) -> bool:
        """Whether the label of each element is computed from that of another value at its place."""
        _, ids, parts = self._side_by_side(x, of)
        known = (ids != NONE) & (parts != NONE)
        return self._state.labels.are_parts(parts[known], ids[known])

    def _is_log_softmax(self, x: Value, log_sum: Value) -> bool:
        """Whether a difference is the logarithm of a softmax over tokens: x - log Σ exp(x)."""
        of, rank = log_sum.log_sum_of, len(self.shape)
        over_tokens = of is not None and to_rank(x.map, rank).numel() > to_rank(log_sum.map, rank).numel()
        return over_tokens and of is not None and any(computes_same(of, n) for n in (x.summand, x.node))

    def _summed(self, a: Value, b: Value, scales: Sequence[float] | None) -> Value:
        """The label of a sum of differing labels, by the policy."""
        residual = self.policy.residual
        if residual == "skip":
            return self._of_branch(a, b)
        _, differ = merge(*self._side_by_side(a, b)[1:])
        if residual == "average" or not bool(differ.any()):
            return self._averaged(a, b)
        # addmm computes a summand itself, which no node holds
        if scales is None or self.node in (a.node, b.node):
            raise self._without_summands()
        sizes = tuple(map(abs, scales))
        weights = {} if sizes == (1, 1) else {"scales": sizes}
        if residual == "norm":
            return self._by_norm(a, b, weights)
        scales_of = [list(self._scales_of(v)) for v in (a, b)]
        if not weights and not any(scales_of):
            return self._averaged(a, b)
        return self._averaged(a, b, runtime.residual_by_scale, scales_of, weights)

    def _without_summands(self) -> InputError:
        return InputError(
            f"residual={self.policy.residual!r} needs both summands of {self.node.name}, which computes one of them, "
            "or its scale, itself: use residual='average', or write it as two operators"
        )

    def _by_norm(self, a: Value, b: Value, weights: dict[str, Any]) -> Value:
        """Differing ids by the norms of the two values, each place by itself."""
        where, ids_a, ids_b = self._side_by_side(a, b)
        merged, differ = merge(ids_a, ids_b)
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

    def _is_branch(self, a: Value, b: Value) -> bool:
        """Whether the first of two summands is the branch g of a residual connection, not its skip path."""
        graph = content_graph(self._state.operations, self._state.regions.sources_of)
        skip = residual_arms(graph, [v.node for v in (a, b) if v.node in graph])
        return b.node not in skip.branch if skip else a.node not in graph

    def _scales_of(self, x: Value) -> Iterator[BranchScale]:
        """The scales of a summand, as :func:`tlfx.runtime.residual_by_scale` takes them."""
        for factor, layout in self._state.scales.of(x.node):
            yield factor, len(layout.shape), layout.batch_axis

    def _note_branch_scale(self, a: Value, b: Value) -> None:
        for content, factor in ((a, b), (b, a)):
            if content.is_content and factor.is_constant and content.shape == self.shape:
                self._note_scale(content, factor.node)

    def _note_scale(self, x: Value, factor: Any) -> None:
        """Note the factor of a branch; the product has the layout of ``x``."""
        if self.policy.residual == "gated":
            self._state.scales.note(self.node, x.node, factor, layout=x)


def _are_disjoint(one: Tensor, other: Tensor) -> bool:
    """Whether each element of a sum has the content of one of two values at most, the other being zero there."""
    return not bool(((one != NONE) & (other != NONE)).any())
