"""Marks: an operator that a capture puts into the graph where a region begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import Graph, Node

from tlfx.capture.regions import Region

__all__ = ["RegionRecorder", "collect_regions"]


@torch.library.custom_op(
    "tlfx::mark", mutates_args=(), schema="(Tensor[] values, SymInt[] sizes, int region, bool begins) -> ()"
)
def _mark(values: Sequence[Tensor], sizes: Sequence[int], region: int, begins: bool) -> None:
    """Marks the begin or the end of a region, with the values that go in or come out."""


@_mark.register_fake
def _(values: Sequence[Tensor], sizes: Sequence[int], region: int, begins: bool) -> None:
    return None


torch.fx.node.has_side_effect(torch.ops.tlfx.mark.default)


class RegionRecorder:
    """The regions of a capture, in the order in which they begin."""

    def __init__(self) -> None:
        self.regions: list[Region] = []

    def begin(self, region: Region, leaves: Sequence[Any] = ()) -> None:
        """Mark the beginning of a region, with the flat values that go in."""
        region.inputs = list(leaves)
        self.regions.append(region)
        self._mark(region, leaves, True)

    def end(self, region: Region, leaves: Sequence[Any] = ()) -> None:
        """Mark the end of a region, with the flat values that come out."""
        region.outputs = list(leaves)
        self._mark(region, leaves, False)

    def _mark(self, region: Region, leaves: Sequence[Any], begins: bool) -> None:
        values = [x for x in leaves if isinstance(x, Tensor)]
        sizes = [x for x in leaves if isinstance(x, SymInt)]
        torch.ops.tlfx.mark(values, sizes, self.regions.index(region), begins)


def collect_regions(graph: Graph, regions: Sequence[Region]) -> dict[Node, Region]:
    """The innermost region of each operator; marks are erased from the graph.

    A region without an end is dropped: its autograd function raised an error, which the model caught.
    """
    open_regions: list[Region] = []
    inside: dict[Node, tuple[Region, ...]] = {}
    ended: set[Region] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is not torch.ops.tlfx.mark.default:
            inside[node] = tuple(open_regions)
            continue
        values, sizes, number, begins = node.args
        region = regions[number]
        _name(region.inputs if begins else region.outputs, values, sizes)
        if begins:
            region.parent = open_regions[-1] if open_regions else None
            open_regions.append(region)
        elif region in open_regions:
            ended.add(region)
            del open_regions[open_regions.index(region) :]
        graph.erase_node(node)
    for region in regions:
        region.parent = next((r for r in list(region.ancestors)[1:] if r in ended), None)
    innermost = {node: next((r for r in reversed(path) if r in ended), None) for node, path in inside.items()}
    return {node: region for node, region in innermost.items() if region is not None}


def _name(leaves: list[Any], values: Sequence[Node], sizes: Sequence[Any]) -> None:
    """Replace tensors and sizes among leaves by nodes, and symbolic floats, which a mark cannot hold, by None."""
    tensors, numbers = iter(values), iter(sizes)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[place] = next(tensors)
        elif isinstance(leaf, SymInt):
            leaves[place] = next(numbers)
        elif isinstance(leaf, SymFloat | SymBool):
            leaves[place] = None
