"""Linear attention: q(kᵀv), tokens contracted before channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import RuleError
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import find_batch_axis, ids_of_sample, map_of_ids
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.mixing import Mixing, with_image_labels
from tlfx.propagate.verbs.subscripts import ContractionAxes, Subscripts, arrange

__all__ = ["LinearAttention"]


class LinearAttention(Mixing):
    """The two contractions of linear attention: kᵀv makes a context, q reads it."""

    def _context(self, a: Value, of_a: Subscripts, b: Value, of_b: Subscripts, out: Subscripts) -> Value:
        """Tokens contracted between two values, kᵀv: a value that waits for its query (linear attention). Without one,
        what is computed later weights the tokens of the other, in whatever order the two are multiplied."""
        sides = [(a, of_a, b, of_b), (b, of_b, a, of_a)]
        # nodes compare by their order in the graph
        if (b.weighs, b.source) > (a.weighs, a.source):
            sides.reverse()
        # a softmax over the contracted tokens is the side of the keys
        fixed = [s for s in sides if s[0].softmax_dim is not None and s[1][s[0].softmax_dim] not in out]
        self.record(Operation.SPATIAL_MIX)
        maps = [self._context_map(*side, out) for side in (fixed or sides)[: 1 if len(fixed) == 1 else 2]]
        return self.content(*maps, role=Role.CONTEXT)

    def _context_map(self, w: Value, of_w: Subscripts, x: Value, of_x: Subscripts, out: Subscripts) -> Tensor:
        x = self._as_product(x)
        massed = x.pending is not None
        axes = self._axes(self._filled_product(x) if massed else x, of_x, of_w, out)
        axes = axes if massed else with_image_labels(axes)
        heads = axes.heads
        # heads last: as content by itself, a context is the sum over them
        kept = [c for c in axes.out if (c in axes.weight or c in axes.varying) and c not in heads] + heads
        ids = self._mixed(runtime.context, w, of_w, axes, kept, {"mass": massed, **self.signed})
        self._finalize(ids.reshape(-1, ids.shape[len(kept) - len(heads) :].numel()))
        return map_of_ids(arrange(ids, kept, axes.out), self.batch, axes.content.where_in(out))

    def _sum_of_contexts(self, a: Value, b: Value, scales: Sequence[float] | None) -> Value:
        """A sum of two contexts kᵀv, each of some tokens: the context of all."""
        if scales is None or len(a.maps) != len(b.maps):
            raise self._unlike_contexts()
        self.record(Operation.SPATIAL_MIX)
        sizes = torch.tensor([abs(s) for s in scales])
        return self.content(
            *(self._sum_of_maps(*m, sizes) for m in zip(a.maps, b.maps, strict=True)), role=Role.CONTEXT
        )

    def _sum_of_maps(self, one: Tensor, other: Tensor, sizes: Tensor) -> Tensor:
        """The map of the sums of contexts of two maps, registered with the labels that they have as content."""
        where = find_batch_axis(one, self.batch)
        ids = torch.stack(torch.broadcast_tensors(*(ids_of_sample(m, self.batch, where) for m in (one, other))), -1)
        pairs, place = ids.flatten(0, -2).unique(dim=0, return_inverse=True)
        new = self._total_mass(pairs, sizes)
        rows = (self._state.contexts.resolve(pairs * self.batch) // self.batch).unique(dim=0, return_inverse=True)[1]
        heads = rows.bincount()
        if not bool((heads == heads[0]).all()):
            raise self._unlike_contexts()
        self._finalize(new[rows.argsort(stable=True)].view(len(heads), -1))
        return map_of_ids(new[place].view(ids.shape[:-1]), self.batch, where)

    def _unlike_contexts(self) -> RuleError:
        return RuleError(
            f"{self.node.name} adds two products kᵀv of linear attention whose relative weights are unknown: "
            "concatenate their keys and their values instead"
        )

    def _finalize(self, ids: Tensor) -> None:
        """Register a context, ids (out, heads), with the label that it has as content: the mean over its heads."""
        finalized = self.label(runtime.finalize, Operand(ids), shape=(len(ids),), elementwise=True)
        self._state.contexts.finalize(ids, finalized)

    def _read_context(
        self, q: Value, of_q: Subscripts, context: Value, of_c: Subscripts, out: Subscripts
    ) -> Value | None:
        """Second contraction of a linear attention, q(kᵀv): |q| on the context, summed over heads, normalised."""
        query = self._axes(q, of_q, of_c, out)
        if query.tokens:
            return None
        if not self._state.layers.is_aligned(self.node):
            self.record(Operation.SPATIAL_MIX)
            return self._from_axes(query.content.ids, query.content.subscripts, query, out)
        # the labels of a context differ along the channels of its weight, which its query contracts
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
