"""Writes: some elements of a value replaced by elements of another, in place or in a copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tlfx.errors import ProvenanceError
from tlfx.propagate.maps import NONE, compact, fill_none, fill_tokens
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.pending import Pending, carry_masses, to_rank

__all__ = ["Written"]


class Written(Pending):
    """Verbs of operators that write."""

    def overwrite(self, before: Value, value: Value, source: Tensor) -> Value:
        """``before`` after a write: ``source`` (the shape of ``before``) numbers the element of ``value`` that each
        element takes, -1 where it stays.

        Raises ProvenanceError where a part of a context kᵀv is overwritten.
        """
        after = self._overwritten(before, value, source)
        # what was written is another value than the node held before, for all that is computed from either
        return replace(after, origin=after.origin or self.node, function_of=after.function_of or self.node)

    def _overwritten(self, before: Value, value: Value, source: Tensor) -> Value:
        if bool((source >= 0).all()):
            return _replaced(before, value, source)
        after = Value(before.node, before.shape, before.batch)
        after = replace(after, mixes_samples=before.mixes_samples or value.mixes_samples)
        roles = (before.role, value.role)
        if Role.CONTEXT in roles:
            raise ProvenanceError(f"a part of {before.node.name}, a product kᵀv of linear attention, is overwritten")
        if Role.CONTENT in roles:
            return self._beside_written(after, before, value, source)
        if Role.WEIGHT in roles:
            return after.with_maps(*_sides(before, value, source), role=Role.WEIGHT)
        return after

    def _chosen(self, first: Tensor, a: Value, b: Value) -> Value:
        """``a`` where ``first`` (bool) holds, and ``b`` elsewhere."""
        a, b = (self._in_full(v) for v in (a, b))
        numbers = torch.arange(torch.Size(self.shape).numel()).view(self.shape)
        return replace(self.overwrite(b, a, torch.where(first, numbers, -1)), node=self.node)

    def _in_full(self, x: Value) -> Value:
        """A value broadcast to the shape of the output, its labels with a mass as well."""
        maps = tuple(to_rank(m, len(self.shape)) for m in x.maps)
        return carry_masses(replace(x, shape=self.shape, maps=maps), x, lambda m: to_rank(m, len(self.shape)))

    def _beside_written(self, after: Value, before: Value, value: Value, source: Tensor) -> Value:
        """Content of which a part was written, labels with a mass among its own."""
        content = self._content(before, value, source)
        if bool((content == NONE).all()):
            return after
        after = replace(after.with_maps(content, role=Role.CONTENT), weighs=before.weighs or value.weighs)
        contents = [v for v in (before, value) if v.is_content]
        if self._are_of_one_value(contents):
            after = replace(after, origin=contents[0].source)

        def merged(masses: Callable[[Value], Tensor]) -> Tensor:
            one, other = (masses(v) if v.is_content else None for v in (before, value))
            pending = _merged(before.shape, one, other, value.shape, source)
            # learned tokens among products that are written into a buffer have mass 1
            return compact(torch.where(pending == NONE, self._with_mass(content, after.batch_axis), pending))

        return self._beside(after, [before, value], merged)

    def _content(self, before: Value, value: Value, source: Tensor) -> Tensor:
        """The map of content of which a part was written. Constants in it are padding, or tokens with the label of the
        image."""
        one, other = (v.map if v.is_content else None for v in (before, value))
        full = _merged(before.shape, one, other, value.shape, source)
        tokens = torch.zeros(before.shape, dtype=torch.bool)
        for v, part in ((before, source < 0), (value, source >= 0)):
            if not v.is_content and self.number(v) is None:
                tokens |= part
        if not bool(tokens.any()) or bool((full == NONE).all()):
            return compact(full)
        filled = fill_tokens(full, value.batch).expand(before.shape)
        return compact(torch.where(tokens & (full == NONE), filled, full))


def _replaced(before: Value, value: Value, source: Tensor) -> Value:
    """A value all of whose elements are those of ``value`` that ``source`` numbers."""
    elements = torch.arange(torch.Size(value.shape).numel()).view(value.shape)
    if source.shape == elements.shape and torch.equal(source, elements):
        return replace(value, node=before.node, origin=value.source, function_of=value.subject, read_as=None)

    def move(content: Tensor) -> Tensor:
        return compact(content.expand(value.shape).flatten()[source])

    after = Value(before.node, before.shape, before.batch, value.role, tuple(move(m) for m in value.maps))
    after = replace(after, origin=value.source, number=value.number, mixes_samples=value.mixes_samples)
    after = replace(after, weighs=value.weighs)
    return carry_masses(after, value, move)


def _sides(before: Value, value: Value, source: Tensor) -> list[Tensor]:
    """The maps of a mixing weight of which a part was written: none where two weights do not have the same sides."""
    # weights[..., 8:] = 0 leaves the sides of the weights
    if value.is_constant:
        return list(before.maps)
    if before.role is Role.WEIGHT and len(before.maps) != len(value.maps):
        return []
    one = before.maps or [None] * len(value.maps)
    merged = [_merged(before.shape, a, b, value.shape, source) for a, b in zip(one, value.maps, strict=True)]
    return [_narrowed(compact(m)) for m in merged]


def _narrowed(side: Tensor) -> Tensor:
    """A map of one side of a weight, narrowed along the axes of the other side, where there may be constants."""
    for axis in range(side.dim()):
        side = fill_none(side, [axis])
    return side


def _merged(
    shape: tuple[int, ...], one: Tensor | None, other: Tensor | None, written: tuple[int, ...], source: Tensor
) -> Tensor:
    """The full map of a value: ``other`` (of a value of shape ``written``) at the elements that take one of it, ``one``
    at the rest, NONE where a map is None."""
    full = torch.full(shape, NONE) if one is None else one.expand(shape).clone()
    taken = source >= 0
    full[taken] = NONE if other is None else other.expand(written).flatten()[source[taken]]
    return full
