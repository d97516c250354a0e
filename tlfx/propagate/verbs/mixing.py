"""Spatial mixing by a weight that the graph computes, and aggregation by the weights of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import ProvenanceError, RuleError
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import NONE
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.movement import with_image
from tlfx.propagate.verbs.pointwise import Pointwise
from tlfx.propagate.verbs.reduction import Reduction
from tlfx.propagate.verbs.subscripts import (
    ContractionAxes,
    SubscriptedIds,
    Subscripts,
    arrange,
    equation,
    symbols_of,
)
from tlfx.propagate.verbs.weighing import fill_any

__all__ = ["Mixing", "Term", "with_image_labels"]

Term = tuple[Value, Subscripts]
"""A value, and a subscript for each of its axes."""


class Mixing(Pointwise, Reduction):
    """Steps of contractions: content under a weight, its axes classified."""

    def _axes(self, x: Value, of_x: Sequence[str], of_w: Sequence[str], out: Sequence[str]) -> ContractionAxes:
        """The axes of a contraction of ``x`` with a weight. Raises ProvenanceError if it sums over the batch."""
        content = SubscriptedIds.of(x, of_x)
        if content.batch not in out:
            raise ProvenanceError("this contraction sums over the batch; labels belong to one sample each")
        return ContractionAxes.of(content, of_w, out)

    def _from_axes(self, ids: Tensor, subscripts: Sequence[str], axes: ContractionAxes, out: Subscripts) -> Value:
        """Content of the output from ids with subscripts; its labels are constant along all other axes."""
        return self.from_ids(arrange(ids, subscripts, axes.out), axes.content.where_in(out))

    def _aggregate(
        self, w: Value, of_w: Subscripts, axes: ContractionAxes, out: Subscripts, massed: bool = False
    ) -> Value:
        """Tokens and their channels on the contracted axes, weighted by a layer; elements of one token are counted
        together, padding is not. Spatial mixing if windows overlap, as those of a convolution do."""
        self.record(Operation.SPATIAL_MIX if axes.windows_overlap else Operation.AGGREGATION)
        self._check_weight(w)
        kept, table = axes.rows
        # equal columns are elements of one token: their weights are added
        columns, groups = table.unique(dim=1, return_inverse=True)
        along = [of_w.index(c) for c in axes.tokens]
        shape = axes.content.pick([*kept, *axes.tokens]).shape[: len(kept)]
        known = (columns != NONE).any(1)
        valid = {} if bool((columns != NONE).all()) else {"valid": (columns != NONE).float()}
        new = self.label(
            runtime.weighted,
            Operand(fill_any(columns) if massed else with_image(columns)),
            w.node,
            groups,
            along,
            shape=shape,
            kwargs={**valid, **self.signed},
        )
        new = torch.where(known.view(shape), new, NONE)
        return self._from_axes(self._without_mass(new) if massed else new, kept, axes, out)

    def _mix(
        self,
        w: Value,
        of_w: Subscripts,
        axes: ContractionAxes,
        out: Subscripts,
        value: Term | None = None,
        massed: bool = False,
    ) -> Value:
        """Spatial mixing; if ``value`` is given, its norms weight the heads. Labels may have a mass (``massed``)."""
        self.record(Operation.SPATIAL_MIX)
        # rows over the tokens sum to 1: no division by a mass (eq. 9)
        is_softmax = w.softmax_dim is not None and [of_w[w.softmax_dim]] == axes.tokens
        if massed or (value is None and bool((axes.content.ids == NONE).any())):
            mixed = self._mix_valid(w, of_w, axes, out, massed)
            return mixed if is_softmax else self._as_part(mixed, w, of_w, axes, out, massed)
        axes = with_image_labels(axes)
        if value is not None:
            options = {**self.signed, **self._deviation}
            ids = self._mixed(runtime.heads_by_norm, w, of_w, axes, axes.kept, options, value)
        else:
            options = {"is_softmax": True} if is_softmax else self.signed
            own = None if is_softmax else self._label_of_queries(w, of_w, axes)
            ids = self._mixed(runtime.mix, w, of_w, axes, axes.kept, options, own=own)
        mixed = self._from_axes(ids, axes.kept, axes, out)
        return mixed if is_softmax else self._as_part(mixed, w, of_w, axes, out)

    def _as_part(
        self, mixed: Value, w: Value, of_w: Subscripts, axes: ContractionAxes, out: Subscripts, massed: bool = False
    ) -> Value:
        """Content mixed by some weights of a softmax: summed with other parts of it, it counts by the sum of its
        weights. Any other mixed content as it is."""
        if w.softmax_of is None:
            return mixed

        def mass() -> Tensor:
            ids = axes.content.ids
            filled = replace(axes.content, ids=self._filled_masses(ids if massed else self._massed(ids)))
            of_all, sizes = replace(axes, content=filled), self._sizes(w, of_w, axes)
            sums = self._mixed(runtime.context, w, of_w, of_all, axes.kept, {"mass": True, **self.signed})
            # a context is summed over heads, where weights of attention are averaged
            heads = [sizes[c] for c in axes.heads if c not in axes.kept]
            return self._from_axes(self._sum_of_masses(sums, [], 1 / math.prod(heads)), axes.kept, axes, out).map

        return replace(mixed, mixed_by=w.softmax_of, mass=mass)

    def _mix_valid(self, w: Value, of_w: Subscripts, axes: ContractionAxes, out: Subscripts, massed: bool) -> Value:
        """Spatial mixing normalised over tokens with content and their masses: padding has none."""
        valid = axes.content.pick(axes.varying) != NONE
        options: dict[str, Any] = {"mass": True} if massed else {}
        options |= {} if bool(valid.all()) else {"valid": valid.float()}
        filled = replace(axes, content=replace(axes.content, ids=fill_any(axes.content.ids)))
        own = self._label_of_queries(w, of_w, axes)
        ids = self._mixed(runtime.mix, w, of_w, filled, axes.kept, {**options, **self.signed}, own=own)
        # what mixes padding alone has no content
        seen = valid.any([i for i, c in enumerate(axes.varying) if c in axes.tokens], keepdim=True)
        seen = arrange(seen, axes.varying, axes.kept)
        return self._from_axes(torch.where(seen, ids, NONE), axes.kept, axes, out)

    def _label_of_queries(self, w: Value, of_w: Subscripts, axes: ContractionAxes) -> Operand | None:
        """The labels that queries keep whose weights are all zero; None for weights whose queries have none."""
        for content in w.maps if w.role is Role.WEIGHT else ():
            side = SubscriptedIds.of(w.with_maps(content, role=Role.CONTENT), of_w)
            # the side of the weight that varies along axes of the output only
            if side.batch == axes.content.batch and set(side.varying(side.subscripts)) <= set(axes.kept):
                sizes = self._sizes(w, of_w, axes)
                return Operand(with_image(side.pick(axes.kept)).expand([sizes[c] for c in axes.kept]))
        return None

    def _sizes(self, w: Value, of_w: Subscripts, axes: ContractionAxes) -> dict[str, int]:
        """Lengths of the axes of a weight and of the content that it mixes."""
        sizes = dict(zip(axes.weight, _shape_of_sample(w, of_w, axes.content), strict=True))
        return sizes | {c: axes.content.size_of(c) for c in axes.varying}

    def _mixed(
        self,
        function: Callable[..., Tensor],
        w: Value,
        of_w: Subscripts,
        axes: ContractionAxes,
        kept: Sequence[str],
        options: dict[str, Any],
        value: Term | None = None,
        own: Operand | None = None,
    ) -> Tensor:
        """Ids, with the subscripts ``kept``, of labels mixed by a weight, and by the norms of ``value`` if given."""
        self._check_weight(w)
        content, labels, sizes = axes.content, axes.varying, self._sizes(w, of_w, axes)
        queries = [c for c in kept if c not in content.subscripts]
        args: tuple[Any, ...] = (w.read, Operand(content.pick(labels)), equation(axes.weight, labels, kept, queries))
        args += () if own is None else (own,)
        options = {"where": _where_in_weight(content, of_w), **options}
        if value is not None:
            x, of_x = value
            self._check_weight(x)
            symbols = symbols_of((*labels, *axes.weight, *kept, *content.split(of_x)), queries)
            args += (x.node, "".join(symbols[c] for c in content.split(of_x)))
            options |= {"where_value": content.where_in(of_x)}
        return self.label(
            function,
            *args,
            shape=[sizes[c] for c in kept],
            kwargs=options,
            # runtime.context computes all labels: its queries are not known yet
            query_axis=kept.index(queries[0]) if len(queries) == 1 and function is not runtime.context else None,
        )

    def _check_weight(self, w: Value) -> None:
        if w.node is self.node:
            raise RuleError(
                f"{self.node.name} computes its own mixing weights, which no node of the graph holds: write it as two "
                "operators"
            )

    def in_place(self, w: Value, of_w: Subscripts, tokens: list[str], out: Subscripts) -> Value:
        """A mixing that is left out of the alignment: each query keeps its label."""
        for content in w.maps:
            if all(content.shape[of_w.index(c)] == 1 for c in tokens):
                return self.content(arrange(content, of_w, out))
        raise ProvenanceError(f"{self.node.name} cannot be left out of the alignment: its queries have no label")


def with_image_labels(axes: ContractionAxes) -> ContractionAxes:
    """The axes of content in which elements without content have the image-level label."""
    return replace(axes, content=replace(axes.content, ids=with_image(axes.content.ids)))


def _where_in_weight(content: SubscriptedIds, of_w: Subscripts) -> runtime.BatchAxis | None:
    """The place of the batch in a weight, None if all samples share the weight."""
    return content.where_in(of_w) if content.batch in of_w else None


def _shape_of_sample(w: Value, of_w: Subscripts, content: SubscriptedIds) -> list[int]:
    """Shape of a weight for one sample."""
    shape: list[int] = []
    for c, size in zip(of_w, w.shape, strict=True):
        shape.extend(content.where[1:] if c == content.batch else (size,))
    return shape
