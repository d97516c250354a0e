"""Reductions: sums, means and extremes over axes, recurrences and transforms, all uniform over their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.operations import Operation
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import NONE, fill_none, ids_of_sample, map_of_ids
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.base import axis_of_ids, varying
from tlfx.propagate.verbs.movement import Movement
from tlfx.propagate.verbs.pending import moved_factors
from tlfx.propagate.verbs.weighing import mixed_before
from tlfx.runtime import BatchAxis

__all__ = ["Reduction"]


class Reduction(Movement):
    """Verbs of operators that reduce axes without weights."""

    def reduce(
        self, x: Value, axes: Sequence[int] | int | None = None, keepdim: bool = False, linear: str = ""
    ) -> Value:
        """Aggregation, Y ← Norm(Σ Yᵢ), over axes along which labels vary; channel mixing over the others.

        ``linear`` names a linear reduction, "sum" or "mean": of a product with a factor that varies along the axes it
        is spatial mixing, Y ← Norm(|w|)·Y.
        """
        rank = len(x.shape)
        # x.mean([]) is the mean over all axes
        chosen = range(rank) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
        gone = sorted(a % rank for a in chosen)
        x = self.resolve(x)
        if self.is_over_batch(x, gone):
            return self.of_batch()
        if x.role is Role.WEIGHT:
            return self._reduce_weight(x, gone, keepdim)
        out = self._reduce_content(x, gone, keepdim, linear)
        mixes = bool(linear) and bool(varying(x.ids, [axis_of_ids(x.batch_axis, a) for a in gone]))
        if mixes and (valued := self._by_value(x)) is not x:
            operation = Operation.AGGREGATION if x.pending is None else Operation.SPATIAL_MIX
            out = replace(out, maps=self._reduce_content(valued, gone, keepdim, linear, operation).maps)
        return out

    def log_sum(self, x: Value, axes: Sequence[int] | int, keepdim: bool) -> Value:
        """Aggregation over axes by log Σ exp(x)."""
        return replace(self.reduce(x, axes, keepdim), log_sum_of=x.summand)

    def _reduce_content(
        self,
        x: Value,
        gone: Sequence[int],
        keepdim: bool,
        linear: str,
        of_products: Operation = Operation.SPATIAL_MIX,
    ) -> Value:
        """Content reduced over axes, see :meth:`reduce`; ``of_products`` is the operation on labels with a mass."""
        where = x.batch_axis
        over = [axis_of_ids(where, a) for a in gone]
        scale = 1 / torch.Size(x.shape[a] for a in gone).numel() if linear == "mean" else 1
        pending = self._reduce_pending(x, over, scale) if linear and x.pending is not None else None
        if pending is not None and pending[0]:
            self.record(of_products)
            ids = self._without_mass(pending[1])
        else:
            ids = self.uniform_over(x.ids, over)
        # the axis of the batch moves by the axes before it that are gone
        place = where if keepdim else BatchAxis(where.axis - sum(a < where.axis for a in gone), *where[1:])
        out = self.from_ids(ids if keepdim else ids.squeeze(over), place)
        out = self._as_statistic(out, x)
        over_tokens = bool(varying(x.ids, over))
        if linear:

            def summed(content: Tensor) -> Tensor:
                masses = self._sum_of_masses(ids_of_sample(content, self.batch, where), over, scale)
                return map_of_ids(masses if keepdim else masses.squeeze(over), self.batch, place)

            out = replace(out, sum_of=x.summand, by_factor=moved_factors(x, summed, over_tokens))
        if pending is None or not out.is_content:
            return out
        massed = pending[1] if keepdim else pending[1].squeeze(over)
        massed = map_of_ids(massed, self.batch, place)
        return replace(out, pending=massed, is_sum=(pending[0] and over_tokens) or x.is_sum, mixed_by=x.mixed_by)

    def _reduce_pending(self, x: Value, over: Sequence[int], scale: float) -> tuple[bool, Tensor]:
        """Whether labels with a mass vary along axes of the ids of a value, and the ids of their sums."""
        assert x.pending is not None
        ids = fill_none(ids_of_sample(x.pending, self.batch, x.batch_axis), over)
        along = varying(ids, over)
        return bool(along), self._sum_of_masses(ids, along, scale) if along else ids

    def sum_to(self, x: Value, subscripts: Sequence[str], out: Sequence[str]) -> Value:
        """An einsum of one operand: a sum over the subscripts that ``out`` lacks, then a permutation."""
        gone = [i for i, c in enumerate(subscripts) if c not in out]
        left = [c for c in subscripts if c in out]
        if gone:
            x = self.step([n for i, n in enumerate(x.shape) if i not in gone]).reduce(x, gone, linear="sum")
        order = [left.index(c) for c in out]
        return x if gone and order == sorted(order) else self.remap(x, lambda m: m.permute(order))

    def uniform_over(self, ids: Tensor, axes: Sequence[int]) -> Tensor:
        """Ids of one sample with ``axes`` reduced to size 1: the mean over their elements, each counted once."""
        ids = fill_none(ids, axes)
        over = varying(ids, axes)
        if not over:
            self.record(Operation.CHANNEL_MIX)
            return ids
        self.record(Operation.AGGREGATION)
        kept = [a for a in range(ids.dim()) if a not in over]
        table = ids.permute(*kept, *over).reshape(-1, int(torch.Size(ids.shape[a] for a in over).numel()))
        shape = [1 if a in over else ids.shape[a] for a in range(ids.dim())]
        return self._mean_of(table).view(shape)

    def _mean_of(self, table: Tensor) -> Tensor:
        """Ids (out,) of new labels, each the mean over the elements with content in one row of ``table`` (out, in)."""
        # equal columns are computed once, and count as often as they occur
        table, counts = table.unique(dim=1, return_counts=True)
        weights = counts * (table != NONE)
        known = weights.sum(1) > 0
        even = bool((weights == weights[0, 0]).all())
        args = () if even else (weights[known].float(),)
        # any id in the place of NONE, whose weight is 0
        new = self.label(
            runtime.uniform, Operand(table[known].clamp_min(0)), *args, shape=(int(known.sum()),), elementwise=True
        )
        return torch.full((len(table),), NONE).masked_scatter(known, new)

    def spread(self, x: Value, axes: Sequence[int]) -> Value:
        """Every position depends on all others along ``axes`` (Fourier transforms, bidirectional recurrences):
        uniform."""
        if self.is_over_batch(x, axes):
            return self.of_batch()
        where = x.batch_axis
        across = [axis_of_ids(where, a % len(x.shape)) for a in axes]
        if varying(x.ids, across):
            self.record(Operation.SPATIAL_MIX)
        return self.from_ids(self.uniform_over(x.ids, across), where)

    def scan(self, x: Value, axis: int, linear: bool = False) -> Value:
        """Every position depends on those up to it (recurrences, cumulative sums): uniform; of a product that is
        ``linear`` summed, by its factor."""
        if self.is_over_batch(x, [axis]):
            return self.of_batch()
        if not x.is_content:
            return self.weight(*x.maps)
        where, axis = x.batch_axis, axis_of_ids(x.batch_axis, axis % len(x.shape))
        if x.ids.shape[axis] == 1:
            self.record(Operation.POINTWISE)
            return self.from_ids(x.ids, where)
        self.record(Operation.SPATIAL_MIX)
        x = mixed_before(x)
        if linear and x.pending is not None:
            return self._scan_pending(x, axis, where)
        ids = x.ids.movedim(axis, -1)
        known = ids != NONE
        valid = () if bool(known.all()) else (known.float().flatten(0, -2),)
        new = self.label(runtime.scan, Operand(ids.clamp_min(0).flatten(0, -2)), *valid, shape=ids.shape)
        # positions before the first one with content see none
        new = torch.where(known.cumsum(-1) > 0, new, NONE)
        out = self.from_ids(new.movedim(-1, axis), where)
        return replace(out, running=x.source) if linear else out

    def _scan_pending(self, x: Value, axis: int, where: BatchAxis) -> Value:
        assert x.pending is not None
        ids = ids_of_sample(x.pending, self.batch, where)
        sums = [self._sum_of_masses(ids.narrow(axis, 0, n), [axis]) for n in range(1, ids.shape[axis] + 1)]
        massed = torch.cat(sums, axis)
        out = self.from_ids(self._without_mass(massed), where)
        return replace(out, pending=map_of_ids(massed, self.batch, where), running=x.source)

    def _reduce_weight(self, x: Value, gone: Sequence[int], keepdim: bool) -> Value:
        """A weight summed over one of its two sides is content of the other; over heads it stays a weight."""
        maps = [m for m in x.maps if all(m.shape[a] == 1 for a in gone)]
        maps = maps if keepdim else [m.squeeze(list(gone)) for m in maps]
        if len(x.maps) == 2 and len(maps) == 1:
            self.record(Operation.CHANNEL_MIX)
            return self.content(maps[0])
        return self.weight(*maps)
