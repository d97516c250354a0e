"""Views of one another: when an operator writes in place, every view of what it writes to must follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from tlfx.provenance import NONE, Role, Value, compact, fill_tokens

__all__ = ["AliasSets", "written_argument"]


def written_argument(node: Node) -> Node | None:
    """The argument that an operator writes to in place, by its schema; to change just its shape is no writing."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    if torch.Tag.inplace_view in node.target.tags:
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return given if isinstance(given, Node) else None
    return None


class AliasSets:
    """Which nodes share memory, by the storages of the shape-only tensors that capture left on them."""

    def __init__(self, values: dict[Node, Any]) -> None:
        self._values = values
        self._sharing: dict[int, dict[Node, None]] = defaultdict(dict)
        self._written: set[int] = set()

    def add(self, node: Node) -> None:
        """Note the storage of a node's value."""
        storage = self.storage_of(node)
        if storage is not None:
            self._sharing[storage][node] = None

    def remove(self, node: Node) -> None:
        """Note that nothing reads a node any more: what of its memory is read yet, others hold."""
        self._sharing.get(self.storage_of(node) or 0, {}).pop(node, None)

    def note_write(self, node: Node) -> None:
        """Note that an operator writes in place, if it does."""
        self._written |= self._written_storages([node])

    def written_by(self, nodes: Sequence[Node]) -> dict[Node, int]:
        """The other nodes whose memory these write to in place, and their storages."""
        storages = self._written_storages(nodes)
        return {node: s for s in storages for node in self._sharing[s] if node not in nodes}

    def _written_storages(self, nodes: Sequence[Node]) -> set[int]:
        written = [w for w in map(written_argument, nodes) if w is not None]
        return {s for s in map(self.storage_of, written) if s is not None}

    def storage_of(self, node: Node) -> int | None:
        """The storage of a node's value."""
        example = node.meta.get("val")
        return _storage(example) if isinstance(example, Tensor) else None

    def is_written(self, node: Node) -> bool:
        """Whether anything so far has written to the memory of a node's value."""
        return self.storage_of(node) in self._written

    def write(self, written: Node, value: Value) -> None:
        """Give what was written in place to the written node and to every view that shares its memory."""
        family = self._sharing[_storage(written.meta["val"])]
        old = self._values[written]
        if _same(old, value):
            return
        if value.role not in (Role.CONTENT, Role.CONSTANT) or len(family) == 1:
            self._values[written] = old.with_maps(*value.maps, role=value.role)
            return
        memory = torch.full((_length(written.meta["val"]),), NONE)
        for node in family:
            for full in self._content(node):
                memory[_places(node)] = full
        memory[_places(written)] = value.expanded()[0] if value.is_content else torch.tensor(NONE)
        for node in family:
            content = compact(memory[_places(node)])
            role = Role.CONSTANT if bool((content == NONE).all()) else Role.CONTENT
            maps = (fill_tokens(content, value.batch),) if role is Role.CONTENT else ()
            self._values[node] = self._values[node].with_maps(*maps, role=role)

    def _content(self, node: Node) -> Iterator[Tensor]:
        value = self._values.get(node)
        if isinstance(value, Value) and value.is_content:
            yield value.expanded()[0]


def _same(old: Value, new: Value) -> bool:
    return old.role is new.role and len(old.maps) == len(new.maps) and all(map(torch.equal, old.maps, new.maps))


def _storage(example: Tensor) -> int:
    while torch._C._functorch.is_batchedtensor(example):  # inside a vmap
        example = torch._C._functorch.get_unwrapped(example)
    return int(example.untyped_storage()._cdata)


def _length(example: Tensor) -> int:
    return int(example.untyped_storage().nbytes()) // example.element_size()


def _places(node: Node) -> Tensor:
    """Where each element of a node's value lies in its storage."""
    example = node.meta["val"]
    size, stride = [int(s) for s in example.shape], [int(s) for s in example.stride()]
    return torch.arange(_length(example)).as_strided(size, stride, int(example.storage_offset()))
