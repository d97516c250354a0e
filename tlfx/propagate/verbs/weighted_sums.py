"""Content multiplied by a weight or a constant, and summed: channels mixed, tokens mixed, or tokens merged."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tlfx.operations import Operation
from tlfx.propagate.maps import IMAGE, NONE, compact, fill_none
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.kept_tokens import KeptTokens
from tlfx.propagate.verbs.linear_attention import LinearAttention
from tlfx.propagate.verbs.mixing import Term, with_image_labels
from tlfx.propagate.verbs.pending import with_pending_labels
from tlfx.propagate.verbs.subscripts import ContractionAxes, Subscripts, arrange
from tlfx.propagate.verbs.weighing import mixed_before

__all__ = ["WeightedSums", "is_product", "places"]


class WeightedSums(KeptTokens, LinearAttention):
    """Steps of contractions of content with a weight or a constant."""

    def _multiply_by_weight(self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts) -> Value:
        """Content multiplied with a weight or a constant."""
        x, of_x = _once_for_queries(w, of_w, mixed_before(x), of_x, out)
        axes = self._filled_axes(x, of_x, of_w, out)
        if not axes.tokens:
            self.record(Operation.CHANNEL_MIX)
            mixed = self._from_axes(axes.content.ids, axes.content.subscripts, axes, out)
            mixed = replace(self._with_pending(mixed, w, of_w, x, of_x, out), weighs=x.weighs, biased=x.biased)
            one_token = mixed.mass is not None or mixed.pending is not None
            return replace(mixed, mixed_by=w.softmax_of) if one_token else mixed
        mixed = self._without_zero_rows(self._sum_by_weight(w, of_w, x, of_x, axes, out), w, of_w, out)
        number = self.number(w) if self.is_fixed(w) else None  # a sum, if the same for all
        return self._as_statistic(mixed, x, number) if number else mixed

    def _without_zero_rows(self, mixed: Value, w: Value, of_w: Subscripts, out: Subscripts) -> Value:
        """Tokens that were mixed, without content where all weights are known to be zero, as those of a mask are."""
        known = self.concrete(w) if self.is_fixed(w) else None
        if not isinstance(known, Tensor) or not mixed.is_content or mixed.pending is not None:
            return mixed
        gone = [i for i, c in enumerate(of_w) if c not in out]
        zero = arrange((known == 0).all(gone, keepdim=True) if gone else known == 0, of_w, out)
        if not bool(zero.any()):
            return mixed
        left = torch.where(zero, NONE, mixed.map)
        return replace(mixed, maps=(compact(left),)) if bool((left != NONE).any()) else self.constant()

    def _sum_by_weight(
        self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, axes: ContractionAxes, out: Subscripts
    ) -> Value:
        """Tokens summed under a weight or a constant."""
        if w.is_constant and self._mixes_tokens(x, of_x, axes):
            x = self._by_value(x)
        if x.pending is not None:
            if x.by_element is not None and axes.heads and not axes.queries:
                return self._multiply_then_sum(w, of_w, x, of_x, out)
            return self._sum_products_by_weight(w, of_w, x, of_x, axes, out)
        if w.is_constant and not self._mixes_tokens(x, of_x, axes):
            kept_tokens = self._mix_and_keep_tokens(w, of_w, axes, out)
            if kept_tokens is not None:
                return kept_tokens
            if self._aggregates_by_weight(of_w, axes):
                return self._aggregate(w, of_w, axes, out)
            # patch merging, or a linear layer on a flattened map: aggregation
            kept = self.uniform_over(axes.content.ids, [axes.content.subscripts.index(c) for c in axes.contracted])
            return self._from_axes(kept, axes.content.subscripts, axes, out)
        # an attention that layers= leaves out
        if w.role is Role.WEIGHT and not self._state.layers.is_aligned(self.node):
            return self.in_place(w, of_w, axes.tokens, out)
        value = (x, of_x) if w.role is Role.WEIGHT and self._by_norm_of_values else None
        return self._mix(w, of_w, with_image_labels(axes) if x.biased and not w.is_constant else axes, out, value)

    def _filled_axes(self, x: Value, of_x: Subscripts, of_w: Subscripts, out: Subscripts) -> ContractionAxes:
        """The axes of a contraction, elements without content having the id of those that they are contracted with."""
        axes = self._axes(x, of_x, of_w, out)
        gone = [axes.content.subscripts.index(c) for c in axes.contracted]
        return replace(axes, content=replace(axes.content, ids=fill_none(axes.content.ids, gone)))

    def _aggregates_by_weight(self, of_w: Subscripts, axes: ContractionAxes) -> bool:
        """Whether a layer that merges tokens weights them: in windows that overlap, or if the policy says so."""
        weighted = self.policy.aggregation == "weighted" or axes.windows_overlap
        return weighted and all(c in of_w for c in axes.tokens)

    def _sum_products_by_weight(
        self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, plain: ContractionAxes, out: Subscripts
    ) -> Value:
        """Products with factors multiplied with a weight or a constant, and summed over tokens: by both factors;
        ``plain`` are the axes of the labels without a mass."""
        axes = self._filled_axes(with_pending_labels(x), of_x, of_w, out)
        if not w.is_constant or self._mixes_tokens(x, of_x, plain):
            return self._mix(w, of_w, axes, out, massed=True)
        kept_tokens = self._mix_and_keep_tokens(w, of_w, axes, out, massed=True)
        if kept_tokens is not None:
            return kept_tokens
        if self._aggregates_by_weight(of_w, plain):
            return self._aggregate(w, of_w, axes, out, massed=True)
        content = axes.content
        ids = self._without_mass(self._sum_of_masses(content.ids, [content.subscripts.index(c) for c in axes.tokens]))
        self.record(Operation.AGGREGATION)
        return self._from_axes(ids, content.subscripts, axes, out)

    def _multiply_then_sum(self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts) -> Value:
        """Products with factors that differ from channel to channel, as the weight does: multiplied, then summed."""
        sizes = dict(zip((*of_x, *of_w), (*x.shape, *w.shape), strict=True))
        subscripts = tuple(sizes)
        step = self.step([*sizes.values()])
        content = step.content(arrange(x.map, of_x, subscripts))
        product = step._weighted_product(content, x, w, places(of_x, subscripts), places(of_w, subscripts))
        return self.sum_to(product, subscripts, out)

    def _with_pending(
        self, mixed: Value, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts
    ) -> Value:
        """Channels mixed, or multiplied by a factor that differs from token to token: labels with a mass stay so."""
        if x.pending is not None:
            axes = self._axes(with_pending_labels(x), of_x, of_w, out)
            if axes.tokens:
                return mixed
            mixed = replace(mixed, pending=self._from_axes(axes.content.ids, axes.content.subscripts, axes, out).map)
        if not is_product((x, of_x), (w, of_w), out):
            return mixed
        return self._weighted_product(mixed, x, w, places(of_x, out), places(of_w, out))

    def _mixes_tokens(self, x: Value, of_x: Subscripts, axes: ContractionAxes) -> bool:
        """Whether a parameter mixes whole tokens: their channels are on another axis, and not on the contracted one,
        where all tokens would occur as often as they have channels."""
        lengths = dict(zip(of_x, x.shape, strict=True)) | {axes.content.batch: 1}
        lengths |= dict(zip(axes.content.split([axes.content.batch]), axes.content.where[1:], strict=True))
        constant = [c for c in axes.content.subscripts if c not in axes.varying and lengths[c] > 1]
        ids = _ids_of_elements(x, of_x, axes)
        ids = ids[(ids != NONE) & (ids != IMAGE)]  # padding and tokens without content may occur more than once
        counts = ids.unique(return_counts=True)[1]
        whole = all(c in axes.out for c in constant) and math.gcd(*counts.tolist()) <= 1
        return whole and len(constant) > 0


def _ids_of_elements(x: Value, of_x: Subscripts, axes: ContractionAxes) -> Tensor:
    """The id of each element of content along the contracted axes of tokens, of elements that are repeated once."""
    if x.elements is None or not set(axes.tokens) <= set(of_x):
        return axes.content.pick(axes.tokens).flatten()
    contracted = tuple(slice(None) if c in axes.tokens else 0 for c in of_x)
    pairs = [m.expand(x.shape)[contracted].flatten() for m in (x.map, x.elements)]
    ids = torch.stack(pairs).unique(dim=1)[0]
    return torch.where(ids == NONE, NONE, ids // x.batch)


def _once_for_queries(w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts) -> Term:
    """Content without the axes along which it is repeated for the queries of a weight: its labels are the same along
    them, where those of the weight are not, unlike along heads."""

    def is_repeated(axis: int, c: str) -> bool:
        maps = [m for m in (x.map, x.pending) if m is not None]
        by_query = c in of_w and any(m.shape[of_w.index(c)] > 1 for m in w.maps)
        return by_query and c in out and x.shape[axis] > 1 and all(m.shape[axis] == 1 for m in maps)

    gone = [i for i, c in enumerate(of_x) if i != x.batch_axis.axis and is_repeated(i, c)]
    if not gone:
        return x, of_x
    kept = [i for i in range(len(of_x)) if i not in gone]
    pending = None if x.pending is None else x.pending.squeeze(gone)
    once = replace(x.with_maps(x.map.squeeze(gone)), shape=tuple(x.shape[i] for i in kept), pending=pending)
    return once, tuple(of_x[i] for i in kept)


def is_product(a: Term, b: Term, out: Subscripts) -> bool:
    """Whether a contraction sums over nothing, and so is an element-wise product."""
    return all(c in out or n == 1 for x, of in (a, b) for c, n in zip(of, x.shape, strict=True))


def places(subscripts: Subscripts, out: Subscripts) -> list[int]:
    """The places of subscripts in the output, -1 for those that it lacks."""
    return [out.index(c) if c in out else -1 for c in subscripts]
