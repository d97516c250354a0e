"""Data movement: the operator itself runs on the map, so that no rule repeats what an operator does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx import runtime
from tlfx._torch import tree_map
from tlfx.graph.nodes import computes_same
from tlfx.operations import Operation
from tlfx.propagate.labels import NodeFunction
from tlfx.propagate.maps import IMAGE, NONE, compact, distinct, find_batch_axis, image_map
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.pending import carry_masses
from tlfx.propagate.verbs.written import Written

__all__ = ["Movement"]


class Movement(Written):
    """Verbs of operators that move elements without changing them."""

    def same(self, x: Value) -> Value:
        """The value itself under another name, type, device or memory layout."""
        out = Value(self.node, self.shape, self.batch, x.role, x.maps, x.softmax_dim, elements=x.elements)
        out = replace(carry_masses(out, x, lambda m: m), weighs=x.weighs, sum_of=x.sum_of, origin=x.source)
        if x.bounds is not None:
            least, greatest = (b.to(self.node.meta["val"].dtype) for b in x.bounds)
            out = replace(out, bounds=(least, greatest))
        out = replace(out, part_of=x.moved, statistic=x.statistic, log_sum_of=x.log_sum_of, softmax_of=x.softmax_of)
        return replace(out, function_of=x.subject, factored=x.factored)

    def move(self) -> Value:
        """Run the operator on the map of its one value with content; indices are evaluated."""
        return self.remap(self._moving, self._run_on)

    def move_each(self) -> list[Value]:
        """The same for an operator with several outputs."""
        x = self._moving
        parts = [self._run_on(full) for full in x.expanded()]
        by_output = zip(*parts, strict=True) if parts else [()] * len(self.shapes)
        values = [
            self._moved(x, maps, partial(self._part_of, i), shape)
            for i, (maps, shape) in enumerate(zip(by_output, self.shapes, strict=True))
        ]

        def part(value: Value, i: int) -> Value:
            return carry_masses(value, x, lambda m: compact(self._part_of(i, m.expand(x.shape))))

        return [replace(part(v, i), origin=x.source, part_of=x.moved) for i, v in enumerate(values)]

    def _part_of(self, i: int, full: Tensor) -> Tensor:
        part: Tensor = self._run_on(full)[i]
        return part

    @property
    def _moving(self) -> Value:
        (x,) = [v for v in [*self.args, *self.kwargs.values()] if isinstance(v, Value) and not v.is_constant]
        return x

    def _run_on(self, full: Tensor) -> Any:
        """The operator on a map instead of its value with content."""

        def swap(value: Any) -> Any:
            return full if isinstance(value, Value) and not value.is_constant else self.concrete(value)

        return self.target(*tree_map(swap, self.args), **tree_map(swap, self.kwargs))

    def remap(self, x: Value, move: Callable[[Tensor], Tensor]) -> Value:
        """The value whose maps are those of ``x`` moved by a function of a full map."""
        maps = [_run(move, m) for m in x.expanded()]
        out = self._moved(x, maps, move, maps[0].shape if maps else self.shape)

        def moved(part: Tensor) -> Tensor:
            return compact(_run(move, part.expand(x.shape)))

        bounds = self._bounds_of(x)
        ends = bounds and (moved(bounds[0]), moved(bounds[1]))
        out = replace(carry_masses(out, x, moved), elements=self._repeated(x, move), bounds=ends)
        out = replace(out, origin=x.source, part_of=x.moved)
        if not _keeps_order(x, out):
            return out
        out = replace(out, statistic=x.statistic, sum_of=x.sum_of, log_sum_of=x.log_sum_of)
        # a part of a value is not a function of all its elements
        keeps_all = torch.Size(out.shape).numel() >= torch.Size(x.shape).numel()
        return replace(out, function_of=x.subject, factored=x.factored) if keeps_all else out

    def _repeated(self, x: Value, move: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The map of equal elements of a value that is moved, if movement repeats any."""
        size = torch.Size(x.shape)
        if x.elements is None and size.numel() >= torch.Size(self.shape).numel():
            return None
        moved = compact(_run(move, x.numbered))
        is_repeated = moved.dim() == len(self.shape) and (moved.shape != self.shape or distinct(moved) is not None)
        return moved if is_repeated else None

    def _moved(self, x: Value, maps: Sequence[Tensor], move: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Value:
        out = self.content(*maps, role=x.role, shape=shape) if maps else self.weight(shape=shape)
        out = replace(out, weighs=x.weighs, softmax_of=x.softmax_of)
        if x.softmax_dim is None:
            return out
        dim, rank = x.softmax_dim, len(x.shape)
        # a softmax whose axis is moved as a whole stays one
        along = torch.arange(x.shape[dim]).view([-1 if a == dim else 1 for a in range(rank)])
        left = compact(_run(move, along.expand(x.shape)))
        axes = [a for a, size in enumerate(left.shape) if size == x.shape[dim] > 1]
        return replace(out, softmax_dim=axes[0] if left.numel() == x.shape[dim] and axes else None)

    def join(self, values: Sequence[Value], axis: int) -> Value:
        """Concatenate along an axis. A value without content gets the image-level label if it joins as tokens (eq. 5),
        and stays without label if it joins as channels of the same tokens, or is padding."""
        # torch.cat ignores empty tensors
        values = [v for v in values if 0 not in v.shape] or values
        axis = axis % len(self.shape)
        known = next((v for v in values if v.is_content), None)
        sides = self._joined_sides(values, axis)
        if known is None:
            return self._bounded(self.weight(*sides))
        if sides:
            self._state.scores[self.node] = sides
        blank = NONE if self._joins_channels(known, axis) else IMAGE
        maps = [self._map_beside(v, known, blank) for v in values]
        out = self._joined_parts(self.content(torch.cat(maps, axis)), values, axis)

        def joined(masses: Callable[[Value], Tensor]) -> Tensor:
            parts = [
                masses(v) if v.is_content else self._with_mass(m, known.batch_axis)
                for v, m in zip(values, maps, strict=True)
            ]
            return self._joined(parts, values, axis)

        return self._beside(out, values, joined)

    def _joined_sides(self, values: Sequence[Value], axis: int) -> tuple[Tensor, ...]:
        """The maps of queries and of keys of scores that are joined along the axis of keys; none for other values.

        Scores for learned keys may be among them: content of the queries, or constants.
        """
        weights = [v for v in values if v.role is Role.WEIGHT]
        for queries in weights[0].maps if weights and all(len(v.maps) == 2 for v in weights) else ():
            # all parts have these queries: as one side of a weight, or as the labels of scores for learned keys
            is_query = [[_are_equal(m, queries) for m in v.maps] for v in values]
            fits = all(sum(of_value) == 1 or v.is_constant for v, of_value in zip(values, is_query, strict=True))
            if not fits or queries.shape[axis] > 1:
                continue
            learned = image_map(queries.shape, self.batch, find_batch_axis(queries, self.batch))
            keys = [
                v.maps[of_value.index(False)] if v.role is Role.WEIGHT else learned
                for v, of_value in zip(values, is_query, strict=True)
            ]
            return queries, self._joined(keys, values, axis)
        return ()

    def _joined_parts(self, out: Value, parts: Sequence[Value], axis: int) -> Value:
        """A concatenation, as moved elements if all parts are those of one value, or padding."""
        first = next(v for v in parts if v.is_content)
        out = replace(out, weighs=all(v.weighs for v in parts), is_product=all(v.is_product for v in parts))
        if any(v.source is not first.source and (not v.is_constant or self.number(v) is None) for v in parts):
            return out
        alike = all(v.statistic == first.statistic for v in parts)
        out = replace(out, origin=first.source, statistic=first.statistic if alike else {})
        if all(computes_same(v.node, first.node) and v.shape == first.shape for v in parts):
            out = replace(out, elements=torch.cat([first.numbered] * len(parts), axis))
        return out if any(v.moved is not first.moved for v in parts) else replace(out, part_of=first.moved)

    def _joined(self, maps: Sequence[Tensor], values: Sequence[Value], axis: int) -> Tensor:
        return compact(torch.cat([m.expand(v.shape) for v, m in zip(values, maps, strict=True)], axis))

    def stack(self, values: Sequence[Value], axis: int) -> Value:
        """Concatenate along a new axis."""
        axis = axis % len(self.shape)
        return self.join([self._with_axis(v, axis) for v in values], axis)

    def _with_axis(self, x: Value, axis: int) -> Value:
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        out = Value(x.node, shape, x.batch, x.role, tuple(m.unsqueeze(axis) for m in x.maps))
        out = replace(out, origin=x.source, part_of=x.moved)
        return carry_masses(out, x, lambda m: m.unsqueeze(axis))

    def output(self, x: Any, node: Node | None = None) -> Any:
        """One of several outputs of an operator, as the value of a separate node."""
        return replace(x, node=node or self.node) if isinstance(x, Value) else x

    def halves(self, x: Value, axis: int) -> tuple[Value, Value]:
        """The two halves of a value along an axis, the second as the gate that it is (GLU)."""
        one, other = (
            self.content(*m, role=x.role, shape=self.shape)
            for m in zip(*(full.chunk(2, axis) for full in x.expanded()), strict=True)
        )
        if x.pending is not None:
            one = replace(one, pending=compact(x.pending.expand(x.shape).chunk(2, axis)[0]))
        # aten.glu computes the sigmoid itself, so that no node holds it
        gate = NodeFunction(runtime.glu_gate, x.node, {"axis": axis})
        return one, replace(other, read_as=gate, function_of=x.node)

    def taken_from(self, source: Value) -> Value:
        """The content of another value, broadcast to the shape of the output."""
        full = self._in_full(source)
        out = Value(self.node, self.shape, self.batch, source.role, full.maps, number=self.number(source))
        return replace(carry_masses(out, full, lambda m: m), origin=source.source, weighs=source.weighs)

    def erase(self, x: Value, gone: Tensor) -> Value:
        """Point-wise, except that constant elements (``gone``, bool) are overwritten by numbers: those hold no
        content."""
        self.record(Operation.WEIGHT if x.role is Role.WEIGHT else Operation.POINTWISE)
        if not x.is_content:
            return replace(x, node=self.node, shape=self.shape, softmax_dim=None)
        return self._chosen(gone, self.constant(number=0), x)

    def _joins_channels(self, known: Value, axis: int) -> bool:
        where = known.batch_axis
        if axis == where.axis or known.map.shape[axis] > 1:
            return False
        # on an axis of length 1, a value with a single label is one token, and other values are joined to it as tokens
        return known.shape[axis] > 1 or known.ids.numel() > 1

    def _map_beside(self, x: Value, known: Value, blank: int) -> Tensor:
        if x.is_content:
            return x.expanded()[0]
        if blank == NONE or self.number(x) is not None:
            return torch.tensor(NONE).expand(x.shape)
        content = image_map(x.shape, self.batch, known.batch_axis)
        self._state.tokens.note(x, content)
        return content.expand(x.shape)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def with_image(ids: Tensor) -> Tensor:
    """Ids in which elements without content have the image-level label (eq. 5)."""
    return torch.where(ids == NONE, IMAGE, ids)


def _keeps_order(x: Value, out: Value) -> bool:
    """Whether movement only adds, removes or repeats axes, so that a statistic stays aligned with its source."""
    return all(torch.equal(one.flatten(), other.flatten()) for one, other in zip(x.maps, out.maps, strict=False))


def _run(move: Callable[[Tensor], Tensor], full: Tensor) -> Tensor:
    """Run data movement on a map; operators that do not support integers get it as float64, exact up to 2⁵³."""
    try:
        return move(full)
    except (RuntimeError, NotImplementedError):
        return move(full.double()).round().long()
