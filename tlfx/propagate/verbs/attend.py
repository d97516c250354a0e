"""Fused attention: operators that do not expose their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx._torch import tree_map
from tlfx.errors import InputError, RuleError
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import IMAGE
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.base import axis_of_ids
from tlfx.propagate.verbs.movement import with_image
from tlfx.propagate.verbs.subscripts import ContractionAxes, SubscriptedIds, equation
from tlfx.propagate.verbs.window import Window
from tlfx.runtime import BatchAxis

__all__ = ["Attention"]


@dataclass(frozen=True)
class _FusedAttention:
    """One call of scaled dot-product attention, its axes classified by their part in weight · value."""

    query: Value
    key: Value
    value: Value
    axes: ContractionAxes
    lead: list[str]
    out: tuple[str, ...]
    options: dict[str, Any]
    """Mask, causality and scale, as :func:`tlfx.runtime.attention` takes them."""
    hides: bool
    """Whether the mask may let a query see no key."""

    @property
    def of_weight(self) -> tuple[str, ...]:
        """Subscripts of the weights."""
        return (*self.lead, "n", "m")

    def kept(self, labels: Sequence[str]) -> list[str]:
        """Axes of the output along which its labels may vary, if those of the value vary along ``labels``."""
        return [c for c in self.axes.out if c in labels or c == "n"]

    def own(self, kept: Sequence[str]) -> Operand | None:
        """The labels that queries keep which see no key, if there may be any; that of the image if they have none."""
        if not self.hides:
            return None
        ids = torch.tensor(IMAGE)
        if self.query.is_content:
            query = SubscriptedIds.of(self.query, [*self.lead, "n", "d"])
            if set(query.varying(query.subscripts)) <= set(kept):
                ids = with_image(query.pick(kept))
        return Operand(ids.expand(self.shape(kept)))

    def shape(self, kept: Sequence[str]) -> list[int]:
        """Lengths of axes of the output."""
        return [self.query.shape[-2] if c == "n" else self.axes.content.size_of(c) for c in kept]


class Attention(Window):
    """The verbs of fused attention operators."""

    def attend(
        self,
        query: Value,
        key: Value,
        value: Value,
        mask: Value | None = None,
        causal: bool = False,
        scale: float | None = None,
        replaced: Mapping[str, Any] | None = None,
    ) -> Value:
        """Spatial mixing, Y ← Norm(W)·Y (eq. 7, 9), with W = softmax(q·kᵀ·scale + mask) averaged over heads.

        Query (*lead, n, d), key (*lead, m, d), value (*lead, m, e); key and value may have fewer heads (grouped
        queries). ``replaced`` are options under which :func:`tlfx.runtime.attention_with_labels` returns exactly what
        the operator returns, and so may replace it.
        """
        if not value.is_content:
            return self._of_constants(query, key)
        lead = [f"lead{i}" for i in range(len(self.shape) - 2)]
        out = (*lead, "n", "e")
        # n counts queries, m keys, e channels of the value
        axes = self._axes(value, [*lead, "m", "e"], (*lead, "n", "m"), out)
        # labels are the same for all keys: weights that sum to 1 keep them
        if not axes.tokens:
            self.record(Operation.CHANNEL_MIX)
            return self._from_axes(axes.content.ids, axes.content.subscripts, axes, out)
        if not self._state.layers.is_aligned(self.node):
            return self._left_in_place(query)
        options = {"mask": mask and mask.node, "causal": causal or None, "scale": scale}
        given = {k: v for k, v in options.items() if v is not None}
        call = _FusedAttention(query, key, value, axes, lead, out, given, self._may_hide_all_keys(mask))
        self._check_heads(call)
        self.record(Operation.SPATIAL_MIX)
        if self._by_norm_of_values:
            return self._attend_by_norm(call)
        value = self._as_product(value)
        if value.pending is not None:
            return self._attend_to_products(replace(call, value=value))
        if replaced is not None and not call.hides and self._may_replace(call):
            return self._attend_and_replace(call, replaced)
        return self._attend_beside(call)

    def _may_hide_all_keys(self, mask: Value | None) -> bool:
        """Whether a mask may let a query see no key; one that depends on the image or on chance may."""
        if mask is None:
            return False
        known = self.concrete(mask) if self.is_known(mask) else None
        if known is None:
            return True
        # a softmax over -inf alone is NaN
        hidden = ~known if known.dtype == torch.bool else known == float("-inf")
        return bool(hidden.all(-1).any())

    def _check_heads(self, call: _FusedAttention) -> None:
        """Raise RuleError where keys of one head meet queries of several heads with different labels."""
        lengths = zip(call.lead, call.query.shape, call.value.shape, strict=False)
        # grouped queries: several heads of queries read one head of keys
        grouped = [c for c, n, m in lengths if n != m and c in call.axes.varying]
        if grouped or not (call.query.is_content or call.query.is_constant):
            raise RuleError(f"attention whose heads {grouped} carry different labels")

    def _attend_to_products(self, call: _FusedAttention) -> Value:
        """Values that are products with a factor, Y ← Norm(W·|w|)·Y: their labels have a mass."""
        axes = self._axes(self._filled_product(call.value), [*call.lead, "m", "e"], (*call.lead, "n", "m"), call.out)
        return self._attend_beside(replace(call, axes=axes), massed=True)

    def _attend_beside(self, call: _FusedAttention, massed: bool = False) -> Value:
        """Labels, which may have a mass (``massed``), by a second pass over query and key."""
        labels = call.axes.varying
        kept = call.kept(labels)
        own = call.own(kept)
        if own is not None and massed:
            # the labels of queries need the channel of masses too
            own = Operand(self._massed(own.ids))
        new = self.label(
            runtime.attention,
            call.query.node,
            call.key.node,
            Operand(with_image(call.axes.content.pick(labels))),
            equation(call.axes.weight, labels, kept, ["n"]),
            *([] if own is None else [own]),
            shape=call.shape(kept),
            kwargs={"where": call.axes.content.where_in(call.of_weight), **call.options},
            query_axis=kept.index("n"),
        )
        return self._from_axes(self._without_mass(new) if massed else new, kept, call.axes, call.out)

    def _attend_and_replace(self, call: _FusedAttention, replaced: Mapping[str, Any]) -> Value:
        """Labels as columns of the value in the model's own pass, which a function replaces."""
        content = call.axes.content
        labels = [*content.split([content.batch]), "m"]
        kept = call.kept(labels)
        given = {k: v for k, v in replaced.items() if v}
        if self._state.options.attention == "reuse":
            given["any_size"] = True
        # (outer, inner, keys): merged into the batch, they are columns of the value
        ids = with_image(content.pick(labels)).expand([content.size_of(c) for c in labels[:-1]] + [-1])
        new = self.label(
            runtime.attention_with_labels,
            call.query.node,
            call.key.node,
            call.value.node,
            Operand(ids),
            equation(call.axes.weight, labels, kept, ["n"]),
            shape=call.shape(kept),
            kwargs={"where": content.where_in(call.of_weight), **call.options, **given},
            query_axis=kept.index("n"),
            replaces_node=True,
        )
        return self._from_axes(new, kept, call.axes, call.out)

    def _may_replace(self, call: _FusedAttention) -> bool:
        """Whether labels may go through the model's own attention: on the CPU, whose kernel can carry them, for values
        (batch, heads, tokens, channels) whose labels are the same for all heads and channels; not inside an autograd
        function, which runs as a whole."""
        if self._state.regions.function_call_of(self.node) is not None:
            return False
        on_cpu = self._state.options.attention != "fused" and self._state.device.type == "cpu"
        content = call.axes.content
        alike = set(call.axes.varying) <= {*content.split([content.batch]), "m"}
        return on_cpu and alike and len(call.value.shape) == 4 and content.where.axis == 0

    def _attend_by_norm(self, call: _FusedAttention) -> Value:
        """The same with heads weighted by the norms of the value, for labels that are the same in all its channels."""
        content = call.axes.content
        if content.varying(["e"]):
            raise RuleError("attention whose channels carry different labels has no norm for each label")
        of_value, kept = content.split([*call.lead, "m"]), call.kept(call.axes.varying)
        batch = content.split([content.batch])
        full = [content.size_of(c) if c in (*batch, "m") else -1 for c in of_value]
        new = self.label(
            runtime.attention_by_norm,
            call.query.node,
            call.key.node,
            call.value.node,
            Operand(with_image(content.pick(of_value)).expand(full)),
            # the heads, among the axes of the labels behind the batch
            [i + 1 for i, c in enumerate(of_value) if c not in kept and c != "m"],
            content.where_in(call.lead),
            *([own] if (own := call.own(kept)) else []),
            shape=call.shape(kept),
            kwargs={**call.options, **self._deviation},
            query_axis=kept.index("n"),
        )
        return self._from_axes(new, kept, call.axes, call.out)

    def attend_by_itself(self, query: Value, key: Value, value: Value, *settings: Any) -> Value:
        """The same by an operator that does not expose its weights, called as (query, key, value, *settings), all of
        them (batch, heads, tokens, channels): it runs on the labels themselves."""
        if not value.is_content:
            return self._of_constants(query, key)
        where, ids = value.batch_axis, value.ids
        # ids are (outer, inner, heads, tokens, channels)
        if where.axis != 0 or ids.shape[2] > 1 or ids.shape[-1] > 1:
            raise RuleError("attention whose heads or channels carry different labels")
        if ids.shape[3] == 1:
            self.record(Operation.CHANNEL_MIX)
            return self.from_ids(ids, where)
        if not self._state.layers.is_aligned(self.node):
            return self._left_in_place(query)
        if self._by_norm_of_values:
            given, paper = (
                ("heads='norm'", "heads='mean'")
                if self.policy.values == "equal"
                else (f"values={self.policy.values!r}", "values='equal' and heads='mean'")
            )
            raise InputError(
                f"{given} is not supported for {self.node.name}, which does not expose its weights: use "
                f"{paper}, or leave this attention out with layers="
            )
        self.record(Operation.SPATIAL_MIX)
        new = self.label(
            runtime.attend_by_operator,
            self.target,
            query.node,
            key.node,
            Operand(with_image(ids[:, :, 0, :, 0]).expand(where.outer, where.inner, -1)),
            Operand(self._ids_of_queries(query, where)),
            *tree_map(lambda v: v.node if isinstance(v, Value) else v, settings),
            shape=(where.outer, where.inner, self.shape[2]),
            kwargs={"where": BatchAxis(0, where.outer, where.inner)},
        )
        return self.from_ids(new[:, :, None, :, None], where)

    def _ids_of_queries(self, query: Value, where: BatchAxis) -> Tensor:
        """Ids (outer, inner, n) of queries (batch, heads, n, channels); that of the image if they have none."""
        known = query.is_content and query.batch_axis == where and query.ids.shape[2] == query.ids.shape[-1] == 1
        ids = with_image(query.ids[:, :, 0, :, 0]) if known else torch.tensor(IMAGE)
        return ids.expand(where.outer, where.inner, self.shape[2])

    def _of_constants(self, query: Value, key: Value) -> Value:
        """Attention to learned values: the output has the labels of the query."""
        if query.is_content:
            return self._left_in_place(query)
        return self.weight() if not (query.is_constant and key.is_constant) else self.constant()

    def _left_in_place(self, query: Value) -> Value:
        """Each query keeps its label."""
        if not query.is_content:
            raise RuleError(f"{self.node.name} cannot be left out of the alignment: its queries have no label")
        self.record(Operation.SPATIAL_MIX)
        if query.map.shape[-1] in (1, self.shape[-1]):
            return self.content(query.map)
        # the output has other channels than the query: each has the mean of the labels of the query's
        ids = self.uniform_over(query.ids, [axis_of_ids(query.batch_axis, len(query.shape) - 1)])
        return self.from_ids(ids, query.batch_axis)
