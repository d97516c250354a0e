"""Linear attention: q(kᵀv), tokens contracted before channels."""

from __future__ import annotations

from torch import Tensor

from tlfx import runtime
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.values import Role, Value, map_of_ids
from tlfx.propagate.verbs.mixing import Mixing, with_image_labels
from tlfx.propagate.verbs.subscripts import ContractionAxes, Subscripts, arrange

__all__ = ["LinearAttention"]


class LinearAttention(Mixing):
    """The two contractions of linear attention: kᵀv makes a context, q reads it."""

    def _context(self, a: Value, of_a: Subscripts, b: Value, of_b: Subscripts, out: Subscripts) -> Value:
        """Tokens contracted between two values, kᵀv: a value that waits for its query (linear attention)."""
        sides = [(a, of_a, b, of_b), (b, of_b, a, of_a)]
        fixed = [s for s in sides if s[0].softmax_dim is not None and s[1][s[0].softmax_dim] not in out]
        self.record(Operation.SPATIAL_MIX)
        maps = [self._context_map(*side, out) for side in (fixed or sides)[: 1 if len(fixed) == 1 else 2]]
        return self.content(*maps, role=Role.CONTEXT)

    def _context_map(self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts) -> Tensor:
        massed = x.pending is not None
        axes = self._axes(self._filled_product(x) if massed else x, of_x, of_w, out)
        axes = axes if massed else with_image_labels(axes)
        heads = axes.heads
        kept = [c for c in axes.out if (c in axes.weight or c in axes.varying) and c not in heads] + heads
        ids = self._mixed(runtime.context, w, of_w, axes, kept, {"mass": massed, **self.signed})
        self._finalize(ids.reshape(-1, ids.shape[len(kept) - len(heads) :].numel()))
        return map_of_ids(arrange(ids, kept, axes.out), self.batch, axes.content.where_in(out))

    def _finalize(self, ids: Tensor) -> None:
        """Register a context, ids (out, heads), with the label that it has as content: the mean over its heads."""
        finalized = self.label(runtime.finalize, Operand(ids), shape=(len(ids),), elementwise=True)
        self.state.contexts.finalize(ids, finalized)

    def _read_context(
        self, q: Value, of_q: Subscripts, context: Value, of_c: Subscripts, out: Subscripts
    ) -> Value | None:
        """Second contraction of a linear attention, q(kᵀv): |q| on the context, summed over heads, normalised."""
        query = self._axes(q, of_q, of_c, out)
        if query.tokens:
            return None
        if not self.state.layers.is_aligned(self.node):
            self.record(Operation.SPATIAL_MIX)
            return self._from_axes(query.content.ids, query.content.subscripts, query, out)
        for content in context.maps:
            axes = self._axes(context.with_maps(content, role=Role.CONTENT), of_c, of_q, out)
            if axes.tokens:
                return self._mix_heads(q, of_q, query, axes, out)
        return None

    def _mix_heads(
        self, q: Value, of_q: Subscripts, query: ContractionAxes, axes: ContractionAxes, out: Subscripts
    ) -> Value:
        self.record(Operation.SPATIAL_MIX)
        heads = [c for c in axes.varying if c in axes.weight and c not in query.varying]
        kept = [c for c in axes.kept if c not in heads]
        ids = self._mixed(runtime.mix, q, of_q, axes, kept, {"mass": True, **self.signed})
        return self._from_axes(ids, kept, axes, out)
