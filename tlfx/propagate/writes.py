"""In-place writes: every view of the memory that an operator writes to takes the new labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from tlfx.graph.aliasing import element_offsets, storage_length, storage_of, written_storages
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.written import Written

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

    def write(self, written: Node, value: Value, op: Written) -> None:
        """Give a value that an operator has written in place to the written node and to every view of its storage.

        Raises ProvenanceError where a part of a context kᵀv is overwritten.
        """
        # an in-place activation, say: all views hold these labels already
        if not value.is_constant and _same(self._values[written], value):
            return
        # the element of the written value at each offset of the storage, -1 outside of it
        place = torch.full((storage_length(written),), -1)
        offsets = element_offsets(written)
        place[offsets] = torch.arange(offsets.numel()).view(offsets.shape)
        for node in list(self._sharing[storage_of(written) or 0]):
            before, source = self._values.get(node), place[element_offsets(node)]
            if isinstance(before, Value) and bool((source >= 0).any()):
                self._values[node] = op.overwrite(before, value, source)


def _same(old: Value, new: Value) -> bool:
    kinds = old.role is new.role and old.softmax_dim == new.softmax_dim and old.mixes_samples is new.mixes_samples
    masses = old.pending is new.pending and old.mass is new.mass
    return kinds and masses and len(old.maps) == len(new.maps) and all(map(torch.equal, old.maps, new.maps))
