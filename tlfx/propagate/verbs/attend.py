"""Fused attention: weights that the graph never shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._pytree import tree_map

from tlfx import runtime
from tlfx.errors import InputError, RuleError
from tlfx.operations import Operation
from tlfx.propagate.labels import Rows
from tlfx.propagate.values import BatchAxis, Value
from tlfx.propagate.verbs.movement import with_image
from tlfx.propagate.verbs.subscripts import LetteredRows, arrange, equation, split_letter
from tlfx.propagate.verbs.window import Window

__all__ = ["Attention"]


class Attention(Window):
    """The verb of fused attention operators."""

    def attend(
        self,
        query: Value,
        key: Value,
        value: Value,
        mask: Value | None = None,
        causal: bool = False,
        scale: float | None = None,
        joint: Mapping[str, Any] | None = None,
    ) -> Value:
        """Spatial mixing, Y ← Norm(W)·Y (eq. 7, 9), with W = softmax(q·kᵀ·scale + mask) averaged over heads.

        Query (*lead, n, d), key (*lead, m, d), value (*lead, m, e); the value may have fewer heads (grouped
        queries). ``joint`` are options under which :func:`tlfx.runtime.attention_with_labels` gives just what the
        operator gives, and so may stand in for it.
        """
        if not value.is_content:
            return self._of_constants(query, key)
        lead = [f"lead{i}" for i in range(len(self.shape) - 2)]
        of_value, out, of_weight = [*lead, "m", "e"], (*lead, "n", "e"), (*lead, "n", "m")
        found = LetteredRows.of(value, of_value)
        if not self.contracted(found, out):
            self.record(Operation.CHANNEL_MIX)
            return self.from_rows(found.pick(split_letter(out, found.batch)), found.place_in(out))
        if not self.state.layers.is_aligned(self.node):
            return self._left_in_place(query, out)
        options = {"mask": mask and mask.node, "causal": causal or None, "scale": scale}
        rows, carrier = found.varying(found.letters), []
        if joint is not None and self._joins(value, found, rows):
            options |= {k: v or None for k, v in joint.items()}
            rows, carrier = ["m"], [value.node]
            if found.where != BatchAxis(0):
                rows = [*split_letter([found.batch], found.batch), "m"]
        grouped = [c for c in rows if c in lead and query.shape[lead.index(c)] != value.shape[lead.index(c)]]
        if grouped or not (query.is_content or query.is_constant):
            raise RuleError(f"attention whose heads {grouped} carry different labels")
        self.record(Operation.SPATIAL_MIX)
        options = {k: v for k, v in options.items() if v is not None}
        kept = [c for c in split_letter(out, found.batch) if c in rows or c == "n"]
        shape = [self.shape[-2] if c == "n" else _size(found, c) for c in kept]
        if self.policy.heads == "norm":
            return self._attend_by_norm(query, key, value, found, lead, kept, shape, options)
        function: Callable[..., Any] = runtime.attention_with_labels if carrier else runtime.attention
        ids = self.label(
            function,
            query.node,
            key.node,
            *carrier,
            Rows(with_image(found.pick(rows)).expand([_size(found, c) for c in rows])),
            equation(found.weight_letters(of_weight), rows, kept, ["n"]),
            shape=shape,
            kwargs={"split": found.split_of(of_weight), **options},
            query_axis=kept.index("n"),
            instead=bool(carrier),
        )
        return self.from_rows(arrange(ids, kept, split_letter(out, found.batch)), found.place_in(out))

    def _joins(self, value: Value, found: LetteredRows, rows: list[str]) -> bool:
        """Whether labels may go through the model's own attention: the value is (batch, heads, tokens, channels), its
        labels are alike for heads and channels, and its weights alone decide where they go."""
        batched = split_letter([found.batch], found.batch)
        fits = len(value.shape) == 4 and found.where.axis == 0 and set(rows) <= {*batched, "m"}
        return fits and self._on_cpu_kernel and self.policy.heads == "mean"

    @property
    def _on_cpu_kernel(self) -> bool:
        """Whether labels may go through the model's own fused attention: on the CPU, whose kernel can carry them, and
        not inside an autograd function, which runs whole."""
        own = self.state.regions.function_call_of(self.node) is None
        return own and self.state.options.attention != "fused" and self.state.device.type == "cpu"

    def _attend_by_norm(
        self,
        query: Value,
        key: Value,
        value: Value,
        found: LetteredRows,
        lead: list[str],
        kept: list[str],
        shape: list[int],
        options: dict[str, Any],
    ) -> Value:
        """The same with heads weighted by the norms of the value, for rows that are the same in all its channels."""
        if found.varying(["e"]):
            raise RuleError("attention whose channels carry different labels has no norm for each label")
        where, letters = found.where, split_letter([*lead, "m"], found.batch)
        full = {f"{found.batch}<": where.outer, f"{found.batch}>": where.inner, "m": value.shape[-2]}
        rows = with_image(found.pick(letters)).expand([full.get(c, -1) for c in letters])
        ids = self.label(
            runtime.attention_by_norm,
            query.node,
            key.node,
            value.node,
            Rows(rows),
            [i + 1 for i, c in enumerate(letters) if c not in kept and c != "m"],
            found.split_of(lead),
            shape=shape,
            kwargs=options,
            query_axis=kept.index("n"),
        )
        out = (*lead, "n", "e")
        return self.from_rows(arrange(ids, kept, split_letter(out, found.batch)), found.place_in(out))

    def attend_by_itself(self, query: Value, key: Value, value: Value, *settings: Any) -> Value:
        """The same by an operator whose weights no one else knows, called as (query, key, value, *settings), all of
        them (batch, heads, tokens, channels): it is run on the labels themselves."""
        if not value.is_content:
            return self._of_constants(query, key)
        where, rows = value.batch_axis, value.rows
        if where.axis != 0 or rows.shape[2] > 1 or rows.shape[-1] > 1:
            raise RuleError("attention whose heads or channels carry different labels")
        if rows.shape[3] == 1:
            self.record(Operation.CHANNEL_MIX)
            return self.from_rows(rows, where)
        if not self.state.layers.is_aligned(self.node):
            return self._left_in_place(query, ())
        if self.policy.heads == "norm":
            raise InputError(
                f"heads='norm' is not to be had for {self.node.name}, whose weights its operator alone knows: use "
                "heads='mean', or leave this attention out with layers="
            )
        self.record(Operation.SPATIAL_MIX)
        full = with_image(rows[:, :, 0, :, 0]).expand(where.outer, where.inner, -1)
        nodes = tree_map(lambda v: v.node if isinstance(v, Value) else v, settings)
        split = (0, where.outer, where.inner)
        shape = (where.outer, where.inner, self.shape[2])
        ids = self.label(
            runtime.attend_by,
            self.target,
            query.node,
            key.node,
            Rows(full),
            *nodes,
            shape=shape,
            kwargs={"split": split},
        )
        return self.from_rows(ids[:, :, None, :, None], where)

    def _of_constants(self, query: Value, key: Value) -> Value:
        """Attention to learned values: what comes out belongs to the query."""
        if query.is_content:
            return self._left_in_place(query, tuple(str(i) for i in range(len(self.shape))))
        return self.weight() if not (query.is_constant and key.is_constant) else self.constant()

    def _left_in_place(self, query: Value, out: tuple[str, ...]) -> Value:
        """Each query keeps its label."""
        if not query.is_content:
            raise RuleError(f"{self.node.name} cannot be left out of the alignment: its queries have no label")
        self.record(Operation.SPATIAL_MIX)
        content = query.map
        return self.content(content if content.shape[-1] == 1 else content[..., :1])


def _size(found: LetteredRows, letter: str) -> int:
    """Length of an axis of a value for one sample."""
    windows = dict(zip(split_letter([found.batch], found.batch), (found.where.outer, found.where.inner), strict=True))
    return windows.get(letter) or found.rows.shape[found.letters.index(letter)]
