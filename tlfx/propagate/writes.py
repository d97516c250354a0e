"""In-place writes: every view of the memory that an operator writes to takes the new labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.graph.aliasing import element_offsets, storage_length, storage_of, written_storages
from tlfx.propagate.values import NONE, Role, Value, compact, fill_tokens

__all__ = ["InPlaceWrites"]


class InPlaceWrites:
    """The live nodes by storage, and the storages that were written to so far."""

    def __init__(self, values: dict[Node, Any]) -> None:
        self._values = values
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
        """Note the storage that a node writes to, if any."""
        self._written |= written_storages([node])

    def is_written(self, node: Node) -> bool:
        """Whether a node has written to the storage of this node's value so far."""
        return storage_of(node) in self._written

    def written_by(self, nodes: Sequence[Node]) -> dict[Node, int]:
        """The other live nodes whose storage these nodes write to, and those storages."""
        storages = written_storages(nodes)
        return {node: s for s in storages for node in self._sharing[s] if node not in nodes}

    def write(self, written: Node, value: Value) -> None:
        """Give a value that was written in place to the written node and to every view of its storage."""
        sharing = self._sharing[storage_of(written) or 0]
        old = self._values[written]
        if _same(old, value):
            return
        if value.role not in (Role.CONTENT, Role.CONSTANT) or len(sharing) == 1:
            self._values[written] = old.with_maps(*value.maps, role=value.role)
            return
        memory = torch.full((storage_length(written),), NONE)
        for node in sharing:
            for full in self._content(node):
                memory[element_offsets(node)] = full
        memory[element_offsets(written)] = value.expanded()[0] if value.is_content else torch.tensor(NONE)
        for node in sharing:
            content = compact(memory[element_offsets(node)])
            role = Role.CONSTANT if bool((content == NONE).all()) else Role.CONTENT
            maps = (fill_tokens(content, value.batch),) if role is Role.CONTENT else ()
            self._values[node] = self._values[node].with_maps(*maps, role=role)

    def _content(self, node: Node) -> Iterator[Tensor]:
        value = self._values.get(node)
        if isinstance(value, Value) and value.is_content:
            yield value.expanded()[0]


def _same(old: Value, new: Value) -> bool:
    return old.role is new.role and len(old.maps) == len(new.maps) and all(map(torch.equal, old.maps, new.maps))
