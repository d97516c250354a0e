"""Pending weights: a product of content with a factor is a contraction once it is summed, Y ← Norm(|w|)·Y.

The labels of such a product have a mass, |w|. Data movement, channel mixing, further factors and sums keep the mass;
any other operator reads the labels without it. A label with a mass that nothing sums is never computed. Masses are
averages over channels; those of each element are computed where a further factor differs by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from tlfx import runtime
from tlfx.graph.nodes import computes_same, shapes
from tlfx.propagate.labels import Operand
from tlfx.propagate.maps import IMAGE, NONE, compact, ids_of_sample, map_of_ids
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.weighing import Weighing, fill_any, mixed_before
from tlfx.runtime import BatchAxis
from tlfx.runtime.arithmetic import TINY

__all__ = [
    "Pending",
    "are_of_one_measure",
    "carry_masses",
    "moved_factors",
    "to_rank",
    "with_bias",
    "with_pending_labels",
]


class Pending(Weighing):
    """Steps of products and sums: labels with a mass."""

    def _with_masses_of(self, out: Value, factors: Sequence[Value]) -> Value:
        """A product ``out`` of contents whose labels may have a mass each: its labels, with the product of theirs."""
        pending = [to_rank(v.pending, len(out.shape)) for v in factors if v.pending is not None]
        if not pending or not out.is_content:
            return out
        where = out.batch_axis
        ids = torch.broadcast_tensors(*(ids_of_sample(m, self.batch, where) for m in (out.map, *pending)))
        known = torch.stack([i != NONE for i in ids]).all(0)
        labels = [Operand(i[known]) for i in ids]
        new = self.label(runtime.with_masses_of, *labels, shape=(int(known.sum()),), elementwise=True)
        merged = torch.full_like(ids[0], NONE).masked_scatter(known, new)
        return replace(out, pending=compact(map_of_ids(merged, self.batch, where)), function_of=None)

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
        """The map of labels with a mass of any value with content: its own, or 1 for a value that is not a product."""
        if x.pending is not None:
            return x.pending
        return self._with_mass(x.map, x.batch_axis) if x.mass is None else x.mass()

    def _as_product(self, x: Value) -> Value:
        """Content with padding as a product with a mask, which padding does not count under; any other value as it
        is."""
        if not x.is_content or x.biased or x.pending is not None or not bool((x.map == NONE).any()):
            return x
        return replace(x, pending=self._with_mass(x.map, x.batch_axis))

    def _filled_product(self, x: Value) -> Value:
        """A product whose labels are those with a mass; that of padding is negligible in any sum."""
        assert x.pending is not None
        filled = self._filled_masses(ids_of_sample(x.pending, self.batch, x.batch_axis))
        return with_pending_labels(replace(x, pending=map_of_ids(filled, self.batch, x.batch_axis)))

    def _filled_masses(self, ids: Tensor) -> Tensor:
        """Ids of labels with a mass, that of padding negligible in any sum."""
        if not bool((ids == NONE).any()):
            return ids
        return torch.where(ids == NONE, self._total_mass(self._massed(torch.tensor([[IMAGE]])), TINY), ids)

    def _by_element_of(self, x: Value) -> Tensor:
        """The map of labels with the mass of each element of any value with content."""
        return self._pending_of(x) if x.by_element is None else x.by_element()

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

    def _are_parts_of_one_mixing(self, a: Value, b: Value) -> bool:
        """Whether two values are mixed by parts of one softmax."""
        return a.mixed_by is not None and b.mixed_by is not None and computes_same(a.mixed_by, b.mixed_by)

    def _are_of_one_value(self, parts: Sequence[Value]) -> bool:
        """Whether all parts with content are data movement of one value, or products of it, or mixed by parts of one
        softmax."""
        first, *others = (v for v in parts if v.is_content)
        return all(v.source is first.source or self._are_parts_of_one_mixing(v, first) for v in others)

    def _count_by_masses(self, parts: Sequence[Value]) -> bool:
        """Whether parts that are put side by side count by their factors: by those that differ from token to token, and
        by those that are the same for all tokens of a part if the other parts are of the same value or learned."""
        if any(v.pending is not None for v in parts):
            return True
        is_padding = [not v.is_content and self.number(v) is not None for v in parts]
        are_several = is_padding.count(False) > 1
        return are_several and any(v.mass is not None for v in parts) and self._are_of_one_value(parts)

    def _beside(
        self, out: Value, parts: Sequence[Value], joined: Callable[[Callable[[Value], Tensor]], Tensor]
    ) -> Value:
        """A value ``out`` of parts that are put side by side, with their labels with a mass: ``joined`` puts the maps
        side by side that a function gives of the parts."""
        contents = [v for v in parts if v.is_content]
        is_sum = all(v.is_sum for v in contents)
        # a sum of products among other tokens counts as one that a matrix product makes
        is_kept = is_sum or all(are_of_one_measure(v, contents[0]) for v in contents)

        def of(masses: Callable[[Value], Tensor]) -> Callable[[], Tensor]:
            return lambda: joined(lambda v: masses(v if is_kept else mixed_before(v)))

        if any(v.by_element is not None for v in contents):
            out = replace(out, by_element=of(self._by_element_of))
        if self._count_by_masses([v if is_kept else mixed_before(v) for v in parts]):
            return replace(out, pending=of(self._pending_of)(), is_sum=is_sum)
        if len(contents) == 1 and contents[0].mass is not None:
            return replace(out, mass=lambda: joined(self._pending_of))
        return replace(out, by_element=None)

    def _scaled_mass(self, x: Value, out: Value, scale: float | None) -> Value:
        """A value ``x`` times a number: its labels with a mass have as much more; none if the number is not known."""
        if not out.is_content or scale is None:
            return out
        out = replace(out, origin=x.source, part_of=x.part_of, factored=x.factored, sum_of=x.sum_of)
        out = replace(out, factors=x.factors if x.shape == out.shape else None)
        out = replace(out, mixed_by=x.mixed_by, is_product=x.is_product)
        if scale != 0:
            out = replace(out, statistic=x.statistic if scale > 0 else {n: -sign for n, sign in x.statistic.items()})

        def scaled(content: Tensor) -> Tensor:
            content = to_rank(content, len(out.shape))
            if abs(scale) == 1:
                return content
            ids = ids_of_sample(content, self.batch, out.batch_axis)
            return map_of_ids(self._sum_of_masses(ids, [], abs(scale)), self.batch, out.batch_axis)

        by_element = x.by_element
        if by_element is not None:
            out = replace(out, by_element=lambda: scaled(by_element()))
        out = replace(out, by_factor=moved_factors(x, scaled))
        if x.pending is not None:
            return replace(out, pending=scaled(x.pending), is_sum=x.is_sum)
        return out if abs(scale) == 1 and x.mass is None else replace(out, mass=lambda: scaled(self._pending_of(x)))

    def _as_statistic(self, out: Value, x: Value, scale: float = 1) -> Value:
        """A reduction of ``x``, times a number, marked as a statistic of it: of a product, not of the content that is
        multiplied."""
        of = {**x.statistic, x.measured: 1}
        return replace(out, statistic={n: s if scale > 0 else -s for n, s in of.items()}, function_of=x.subject)

    def _as_sum_of_parts(self, out: Value, a: Value, b: Value, scales: Sequence[float]) -> Value:
        """A sum of two values, marked as a statistic of their source if both are parts or statistics of it: such sums,
        one after another, make a mean."""
        one, other = ({n: s * scale for n, s in _measures(v).items()} for v, scale in zip((a, b), scales, strict=True))

        def is_larger(node: Node) -> bool:
            # a statistic has fewer elements than what it is a statistic of
            return all(torch.Size(out.shape).numel() < torch.Size(shape).numel() for shape in shapes(node)[:1])

        both = [n for n, sign in one.items() if sign * other.get(n, 0) > 0 and is_larger(n)]
        return replace(out, statistic={n: 1 if one[n] > 0 else -1 for n in both}) if both else out

    def _sum_of_masses(self, ids: Tensor, over: Sequence[int], scale: float = 1) -> Tensor:
        """Ids of labels with a mass summed over axes, which have size 1 afterwards, times a number."""
        kept = [a for a in range(ids.dim()) if a not in over]
        table = ids.permute(*kept, *over).reshape(-1, int(torch.Size(ids.shape[a] for a in over).numel()))
        return self._total_mass(table, scale).view([1 if a in over else ids.shape[a] for a in range(ids.dim())])

    def _total_mass(self, table: Tensor, scale: float | Tensor = 1) -> Tensor:
        """Ids (out,) of the sums of the rows of a table (out, in) of ids of labels with a mass, times ``scale``."""
        # equal rows have one sum
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
        # (labels, 1): finalize sums over an axis of heads
        new = self.label(runtime.finalize, Operand(distinct[known][:, None]), shape=shape, elementwise=True)
        plain: Tensor = distinct.masked_scatter(known, new)[place]
        return plain

    def _mass_of_sum(self, a: Value, b: Value, plain: Value, scales: Sequence[float]) -> Tensor:
        """The map of labels with a mass of a sum of two products; ``plain`` is the sum without them."""
        where, rank = plain.batch_axis, len(plain.shape)
        maps = [to_rank(self._pending_of(v), rank) for v in (a, b)]
        # (*shape, 2), the ids of both summands
        ids = torch.stack(torch.broadcast_tensors(*(ids_of_sample(m, self.batch, where) for m in maps)), -1)
        new = self._total_mass(ids.flatten(0, -2), torch.tensor([abs(s) for s in scales])).view(ids.shape[:-1])
        return compact(map_of_ids(new, self.batch, where))


def _measures(x: Value) -> Mapping[Node, int]:
    """The nodes that a value is a statistic of, with signs; a value that is not a statistic stands for itself."""
    return x.statistic or {x.measured: 1}


def are_of_one_measure(a: Value, b: Value) -> bool:
    """Whether two values are parts or statistics of one value, the sum of which is a contraction of that."""
    return any(computes_same(one, other) for one in _measures(a) for other in _measures(b))


def to_rank(content: Tensor, rank: int) -> Tensor:
    """A map with axes of size 1 before it, as broadcasting adds them."""
    return content.reshape([1] * (rank - content.dim()) + list(content.shape))


def carry_masses(out: Value, x: Value, move: Callable[[Tensor], Tensor]) -> Value:
    """``out`` with the labels with a mass that ``x`` has, moved as its content is."""
    mass, by_element = x.mass, x.by_element
    return replace(
        out,
        pending=None if x.pending is None else move(x.pending),
        is_sum=x.is_sum,
        mass=None if mass is None else lambda: move(mass()),
        by_element=None if by_element is None else lambda: move(by_element()),
        by_factor=moved_factors(x, move),
        mixed_by=x.mixed_by,
        biased=x.biased,
        is_product=x.is_product,
        by_place=x.by_place,
        is_gate=x.is_gate,
        running=x.running,
    )


def moved_factors(
    x: Value, move: Callable[[Tensor], Tensor], summed: bool = False
) -> dict[Node, tuple[Callable[[], Tensor], bool]]:
    """What ``by_factor`` of a value becomes by a function of maps: data movement, or a sum over tokens (``summed``)."""

    def moved(masses: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: move(masses())

    return {node: (moved(masses), was or summed) for node, (masses, was) in x.by_factor.items()}


def with_bias(x: Value) -> Value:
    """A value after a bias was added to it, which its elements without content, if any, now hold."""
    return replace(x, biased=x.biased or (x.is_content and bool((x.map == NONE).any())))


def with_pending_labels(x: Value) -> Value:
    """A product whose labels are those with a mass."""
    assert x.pending is not None
    return replace(x, maps=(x.pending,), pending=None)
