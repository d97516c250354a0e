"""In-place writes: every view of the memory that an operator writes to takes the new labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.errors import ProvenanceError
from tlfx.graph.aliasing import element_offsets, storage_length, storage_of, written_storages
from tlfx.propagate.values import NONE, Role, Value, compact, fill_none, fill_tokens

__all__ = ["InPlaceWrites"]


class InPlaceWrites:
    """The live nodes by storage, and the storages that were written to so far.

    ``number_of`` gives the number that a constant holds everywhere: padding, unlike learned tokens.
    """

    def __init__(self, values: dict[Node, Any], number_of: Callable[[Value], float | None]) -> None:
        self._values = values
        self._number_of = number_of
        self._sharing: dict[int, dict[Node, None]] = defaultdict(dict)
        self._written: set[int] = set()

    def add(self, node: Node) -> None:
        """Add a node to those that share its storage."""
        storage = storage_of(node)
        if storage is not None:
            self._sharing[storage][node] = None

    def remove(self, node: Node) -> None:
        """Remove a node that nothing reads any more; other nodes may still hold its storage."""
        self._sharing.get(storage_of(node) or 0, {}).pop(node, None)

    def note(self, node: Node) -> None:
        """Note the storage that a node writes constants to, if any: it no longer holds one number, unless that is what
        was written."""
        for storage in written_storages([node]):
            self._written.add(storage)
            number = self._number_written(node)
            for other in self._sharing[storage]:
                value = self._values.get(other)
                if isinstance(value, Value) and value.number not in (None, number):
                    self._values[other] = replace(value, number=None)

    def _number_written(self, node: Node) -> float | None:
        if node.target is torch.ops.aten.zero_.default:
            return 0.0
        if getattr(node.target, "overloadpacket", None) not in (torch.ops.aten.copy_, torch.ops.aten.fill_):
            return None
        given = node.args[1]
        if isinstance(given, int | float):
            return float(given)
        value = self._values.get(given) if isinstance(given, Node) else None
        return self._number_of(value) if isinstance(value, Value) else None

    def is_written(self, node: Node) -> bool:
        """Whether a node has written to the storage of this node's value so far."""
        return storage_of(node) in self._written

    def written_by(self, nodes: Sequence[Node]) -> dict[Node, int]:
        """The other live nodes whose storage these nodes write to, and those storages."""
        storages = written_storages(nodes)
        return {node: s for s in storages for node in self._sharing[s] if node not in nodes}

    def reaches_content(self, written: Node) -> bool:
        """Whether a node shares its storage with a value that depends on the image."""
        values = [self._values.get(n) for n in self._sharing[storage_of(written) or 0]]
        return any(isinstance(v, Value) and not v.is_constant for v in values)

    def write(self, written: Node, value: Value) -> None:
        """Give a value that was written in place to the written node and to every view of its storage.

        Raises ProvenanceError where a part of a context kᵀv is overwritten.
        """
        if not value.is_constant and _same(self._values[written], value):
            return
        place = torch.full((storage_length(written),), -1)
        offsets = element_offsets(written)
        place[offsets] = torch.arange(offsets.numel()).view(offsets.shape)
        for node in list(self._sharing[storage_of(written) or 0]):
            before, source = self._values.get(node), place[element_offsets(node)]
            if isinstance(before, Value) and bool((source >= 0).any()):
                self._values[node] = self._overwritten(before, value, source)

    def _overwritten(self, before: Value, value: Value, source: Tensor) -> Value:
        """The value of a view after a write; ``source`` is the written element that each element takes, -1 for none."""
        after = replace(before, softmax_dim=None, spectrum=None, number=None)
        if bool((source >= 0).all()):
            maps = [compact(m.expand(value.shape).flatten()[source]) for m in value.maps]
            after = replace(after, number=value.number, mixes_samples=value.mixes_samples)
            return after.with_maps(*maps, role=value.role)
        after = replace(after, mixes_samples=before.mixes_samples or value.mixes_samples)
        roles = (before.role, value.role)
        if Role.CONTEXT in roles:
            raise ProvenanceError(f"a part of {before.node.name}, a product kᵀv of linear attention, is overwritten")
        if Role.CONTENT in roles:
            return after.with_maps(self._content(before, value, source), role=Role.CONTENT)
        if Role.WEIGHT in roles:
            return after.with_maps(*_sides(before, value, source), role=Role.WEIGHT)
        return after.with_maps()

    def _content(self, before: Value, value: Value, source: Tensor) -> Tensor:
        """The map of content of which a part was written. Constants in it are padding, or tokens with the label of the
        image."""
        one, other = (v.map if v.is_content else None for v in (before, value))
        full = _merged(before.shape, one, other, value.shape, source)
        tokens = torch.zeros(before.shape, dtype=torch.bool)
        for v, part in ((before, source < 0), (value, source >= 0)):
            if not v.is_content and self._number_of(v) is None:
                tokens |= part
        filled = fill_tokens(full, value.batch).expand(before.shape)
        return compact(torch.where(tokens & (full == NONE), filled, full))


def _sides(before: Value, value: Value, source: Tensor) -> list[Tensor]:
    """The maps of a mixing weight of which a part was written: none where two weights do not have the same sides."""
    if value.is_constant:
        return list(before.maps)
    if before.role is Role.WEIGHT and len(before.maps) != len(value.maps):
        return []
    one = before.maps or [None] * len(value.maps)
    merged = [_merged(before.shape, a, b, value.shape, source) for a, b in zip(one, value.maps, strict=True)]
    return [_narrowed(compact(m)) for m in merged]


def _narrowed(side: Tensor) -> Tensor:
    """A map of one side of a weight, narrowed along the axes of the other side, where constants may lie."""
    for axis in range(side.dim()):
        side = fill_none(side, [axis])
    return side


def _merged(
    shape: tuple[int, ...], one: Tensor | None, other: Tensor | None, written: tuple[int, ...], source: Tensor
) -> Tensor:
    """The full map of a view: ``other`` (of a value of shape ``written``) at the elements that take one of it, ``one``
    at the rest, NONE where a map is None."""
    full = torch.full(shape, NONE) if one is None else one.expand(shape).clone()
    taken = source >= 0
    full[taken] = NONE if other is None else other.expand(written).flatten()[source[taken]]
    return full


def _same(old: Value, new: Value) -> bool:
    kinds = old.role is new.role and old.softmax_dim == new.softmax_dim and old.mixes_samples is new.mixes_samples
    return kinds and len(old.maps) == len(new.maps) and all(map(torch.equal, old.maps, new.maps))
