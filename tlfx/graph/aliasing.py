"""Aliasing: which nodes share memory, and which of them an operator writes to in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Node

from tlfx._torch import OpOverload, schema, storage_key

__all__ = ["element_offsets", "storage_length", "storage_of", "written_argument", "written_storages"]


def written_argument(node: Node) -> Node | None:
    """The argument that an operator writes to in place, by its schema; shape-only changes do not count as writes."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    if torch.Tag.inplace_view in node.target.tags:
        return None
    for position, argument in enumerate(schema(node.target).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return given if isinstance(given, Node) else None
    return None


def written_storages(nodes: Iterable[Node]) -> set[int]:
    """The storages that nodes write to in place."""
    written = [w for w in map(written_argument, nodes) if w is not None]
    return {s for s in map(storage_of, written) if s is not None}


def storage_of(node: Node) -> int | None:
    """The storage of a node's value, by the fake tensor that capture left on the node."""
    example = node.meta.get("val")
    return storage_key(example) if isinstance(example, Tensor) else None


def storage_length(node: Node) -> int:
    """Number of elements in the storage of a node's value."""
    example = node.meta["val"]
    return int(example.untyped_storage().nbytes()) // int(example.element_size())


def element_offsets(node: Node) -> Tensor:
    """Offset of each element of a node's value in its storage: int64, in the shape of the value."""
    example = node.meta["val"]
    size, stride = [int(s) for s in example.shape], [int(s) for s in example.stride()]
    # the same view, of the numbers of the elements
    return torch.arange(storage_length(node)).as_strided(size, stride, int(example.storage_offset()))
