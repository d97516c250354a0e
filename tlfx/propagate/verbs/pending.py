"""Pending weights: a product of content with a factor is a contraction once it is summed, Y ← Norm(|w|)·Y.

The labels of such a product have a mass, |w|. Data movement, channel mixing, further factors and sums keep the mass;
any other operator reads the labels without it. A label with a mass that nothing sums is never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.graph.nodes import shapes
from tlfx.propagate.labels import Operand
from tlfx.propagate.values import NONE, Value, compact, ids_of_sample, map_of_ids
from tlfx.propagate.verbs.bounds import Bounded
from tlfx.runtime import BatchAxis

__all__ = ["Pending", "carry_masses", "fill_any", "has_masses", "to_rank", "with_pending_labels"]


class Pending(Bounded):
    """Steps of products and sums: labels with a mass."""

    def _weighed(
        self,
        out: Value,
        x: Value,
        factor: Value,
        of_x: Sequence[int] | None = None,
        of_factor: Sequence[int] | None = None,
        *,
        inverse: bool = False,
        always: bool = False,
    ) -> Value:
        """A product ``out`` of the content ``x`` (or a quotient, ``inverse``) with its labels weighted by |factor|.

        The axes of the two are those ``of_x`` and ``of_factor`` of the product, -1 for those that it lacks; by default
        the last. Labels stay without a mass if the factor is the same for all tokens, unless they ``always`` need one.
        """
        out = replace(out, origin=x.source)
        out = out if factor.is_constant else replace(out, function_of=None)
        rank, where = len(out.shape), out.batch_axis
        of_x, of_factor = (
            range(rank - len(v.shape), rank) if at is None else at for v, at in ((x, of_x), (factor, of_factor))
        )
        differs = [a for a, own in zip(of_factor, self._own_axes(factor), strict=True) if own and a >= 0]
        pending = x.pending if x.pending is not None or x.mass is None or not always else x.mass()
        content = out.map if pending is None else _to_axes(pending, of_x, rank)
        ids = ids_of_sample(content, self.batch, where)
        by_part = _by_part(differs, where, rank)
        if not always and pending is None and not any(n > 1 and d for n, d in zip(ids.shape, by_part, strict=True)):
            return replace(out, mass=lambda: self._mass_of(out, x, factor, of_x, of_factor, inverse))
        own = [a for a, own in zip(of_x, self._own_axes(x), strict=True) if own and a >= 0]
        labelled = [a for m in factor.maps for a, n in zip(of_factor, m.shape, strict=True) if n > 1 and a >= 0]
        queries = [a for a in differs if a not in own or a in labelled]
        sizes = zip(ids.shape, where.split(out.shape), _by_part(queries, where, rank), strict=True)
        ids = ids.expand([max(n, size if query else 1) for n, size, query in sizes])
        options: dict[str, Any] = {"where": where, "at": tuple(of_factor), **self.signed}
        options |= {"massed": True} if pending is not None else {}
        options |= {"inverse": True} if inverse else {}
        new = self.label(runtime.weigh, Operand(fill_any(ids)), factor.read, shape=ids.shape, kwargs=options)
        pending = map_of_ids(torch.where(ids == NONE, NONE, new), self.batch, where)
        return replace(out, pending=pending, function_of=None)

    def _mass_of(
        self, out: Value, x: Value, factor: Value, of_x: Sequence[int], of_factor: Sequence[int], inverse: bool
    ) -> Tensor:
        pending = self._weighed(out, x, factor, of_x, of_factor, inverse=inverse, always=True).pending
        assert pending is not None
        return pending

    def _by_value(self, x: Value) -> Value:
        """Content as a product whose labels have the size of their token's value as mass, if the policy asks for it and
        a node of the graph holds the value; the same value otherwise."""
        if self.policy.values == "equal" or not x.is_content or not self._is_held(x):
            return x
        where, ids = x.batch_axis, x.ids
        new = self.label(
            runtime.by_value,
            Operand(fill_any(ids)),
            x.read,
            shape=ids.shape,
            kwargs={"where": where, **self._deviation},
        )
        return replace(x, pending=map_of_ids(torch.where(ids == NONE, NONE, new), self.batch, where))

    def _is_held(self, x: Value) -> bool:
        """Whether a node of the graph holds a value, which no step of this operator has moved or computed."""
        return x.read_as is not None or (x.node is not self.node and shapes(x.node) == [x.shape])

    def _pending_of(self, x: Value) -> Tensor:
        """The map of labels with a mass of any value with content: its own, or 1 for what is no product."""
        if x.pending is not None:
            return x.pending
        return self._with_mass(x.map, x.batch_axis) if x.mass is None else x.mass()

    def _own_axes(self, x: Value) -> list[bool]:
        """For each axis of a value whether it has different elements along it; strides tell for constants."""
        if x.elements is not None:
            return [n > 1 for n in x.elements.shape]
        example = x.node.meta.get("val")
        strides = example.stride() if isinstance(example, Tensor) and example.dim() == len(x.shape) else x.shape
        return [n > 1 and stride != 0 for n, stride in zip(x.shape, strides, strict=True)]

    def _with_mass(self, content: Tensor, where: BatchAxis) -> Tensor:
        """The map of the labels of a map, with mass 1."""
        return map_of_ids(self._massed(ids_of_sample(content, self.batch, where)), self.batch, where)

    def _massed(self, ids: Tensor) -> Tensor:
        """Ids of the labels of ids, with mass 1."""
        known = ids != NONE
        if not bool(known.any()):
            return ids
        new = self.label(runtime.massed, Operand(ids[known]), shape=(int(known.sum()),), elementwise=True)
        return ids.masked_scatter(known, new)

    def _scaled_mass(self, x: Value, out: Value, scale: float | None) -> Value:
        """A value ``x`` times a number: its labels with a mass have as much more; none if the number is not known."""
        if not out.is_content or scale is None:
            return out
        out = replace(out, origin=x.source)
        if x.statistic is not None and scale != 0:
            out = replace(out, statistic=(x.statistic[0], x.statistic[1] * (1 if scale > 0 else -1)))

        def pending() -> Tensor:
            content = to_rank(self._pending_of(x), len(out.shape))
            if abs(scale) == 1:
                return content
            ids = ids_of_sample(content, self.batch, out.batch_axis)
            return map_of_ids(self._sum_of_masses(ids, [], abs(scale)), self.batch, out.batch_axis)

        if x.pending is not None:
            return replace(out, pending=pending())
        return out if abs(scale) == 1 and x.mass is None else replace(out, mass=pending)

    def _as_statistic(self, out: Value, x: Value) -> Value:
        """A reduction of ``x``, marked as a statistic of it: of a product, not of the content that is multiplied."""
        if x.pending is None and x.mass is not None:
            return out
        return replace(out, statistic=x.statistic or (x.measured, 1), function_of=x.subject)

    def _sum_of_masses(self, ids: Tensor, over: Sequence[int], scale: float = 1) -> Tensor:
        """Ids of labels with a mass summed over axes, which have size 1 afterwards, times a number."""
        kept = [a for a in range(ids.dim()) if a not in over]
        table = ids.permute(*kept, *over).reshape(-1, int(torch.Size(ids.shape[a] for a in over).numel()))
        return self._total_mass(table, scale).view([1 if a in over else ids.shape[a] for a in range(ids.dim())])

    def _total_mass(self, table: Tensor, scale: float | Tensor = 1) -> Tensor:
        """Ids (out,) of the sums of the rows of a table (out, in) of ids of labels with a mass, times ``scale``."""
        rows, place = table.unique(dim=0, return_inverse=True)
        known = (rows != NONE).any(1)
        weights = ((rows != NONE) * scale)[known].float()
        new = self.label(
            runtime.total, Operand(fill_any(rows)[known]), weights, shape=(int(known.sum()),), elementwise=True
        )
        return torch.full((len(rows),), NONE).masked_scatter(known, new)[place]

    def _without_mass(self, ids: Tensor) -> Tensor:
        """Ids of the labels that ids of labels with a mass stand for: divided by their mass."""
        distinct, place = ids.unique(return_inverse=True)
        known = distinct != NONE
        shape = (int(known.sum()),)
        new = self.label(runtime.finalize, Operand(distinct[known][:, None]), shape=shape, elementwise=True)
        plain: Tensor = distinct.masked_scatter(known, new)[place]
        return plain

    def _mass_of_sum(self, a: Value, b: Value, plain: Value, scales: Sequence[float]) -> Tensor:
        """The map of labels with a mass of a sum of two products; ``plain`` is the sum without them."""
        where, rank = plain.batch_axis, len(plain.shape)
        maps = [to_rank(self._pending_of(v), rank) for v in (a, b)]
        ids = torch.stack(torch.broadcast_tensors(*(ids_of_sample(m, self.batch, where) for m in maps)), -1)
        new = self._total_mass(ids.flatten(0, -2), torch.tensor([abs(s) for s in scales])).view(ids.shape[:-1])
        return compact(map_of_ids(new, self.batch, where))


def _by_part(axes: Sequence[int], where: BatchAxis, rank: int) -> list[bool]:
    """Whether each axis of ids, whose batch axis is split in two, is among axes of a value."""
    inside: list[bool] = [a in axes for a in range(rank)]
    return [*inside[: where.axis], inside[where.axis], inside[where.axis], *inside[where.axis + 1 :]]


def _to_axes(content: Tensor, at: Sequence[int], rank: int) -> Tensor:
    """A map whose axes are those ``at`` of a value of this rank, along which -1 it does not vary."""
    content = content.squeeze([i for i, a in enumerate(at) if a < 0])
    at = [a for a in at if a >= 0]
    order = sorted(range(len(at)), key=at.__getitem__)
    shape = [1] * rank
    for i in order:
        shape[at[i]] = content.shape[i]
    return content.permute(order).reshape(shape)


def to_rank(content: Tensor, rank: int) -> Tensor:
    """A map with axes of size 1 before it, as broadcasting adds them."""
    return content.reshape([1] * (rank - content.dim()) + list(content.shape))


def carry_masses(out: Value, x: Value, move: Callable[[Tensor], Tensor]) -> Value:
    """``out`` with the labels with a mass that ``x`` has, moved as its content is."""
    mass = x.mass
    pending = None if x.pending is None else move(x.pending)
    return replace(out, pending=pending, mass=None if mass is None else lambda: move(mass()))


def has_masses(x: Value) -> bool:
    """Whether a value is a product all of whose labels have a mass: none of its elements is padding."""
    return x.pending is not None and not bool((x.pending == NONE).any())


def with_pending_labels(x: Value) -> Value:
    """A product whose labels are those with a mass."""
    assert x.pending is not None
    return replace(x, maps=(x.pending,), pending=None)


def fill_any(ids: Tensor) -> Tensor:
    """Ids in which elements without content have any other id, which does not count."""
    return torch.where(ids == NONE, ids.max(), ids)
