"""Records the regions of a capture: marks in the graph show where each begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import Graph, Node

from tlfx.capture.marks import Mark, mark, marks_of
from tlfx.capture.regions import Region

__all__ = ["RegionRecorder", "collect_regions"]

REGION = "region"
"""The kind of these marks; their one number tells whether the region begins."""


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
        mark(REGION, self.regions.index(region), leaves, begins)


def collect_regions(graph: Graph, regions: Sequence[Region]) -> dict[Node, Region]:
    """The innermost region of each operator; marks are erased from the graph.

    A region without an end is dropped: its autograd function raised an error, which the model caught.
    """
    open_regions: list[Region] = []
    inside: dict[Node, tuple[Region, ...]] = {}
    ended: set[Region] = set()
    marks = marks_of(graph, REGION)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node not in marks:
            inside[node] = tuple(open_regions)
            continue
        (begins,), region = marks[node].data, regions[marks[node].number]
        _name(region.inputs if begins else region.outputs, marks[node])
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


def _name(leaves: list[Any], given: Mark) -> None:
    """Replace tensors and sizes among leaves by nodes, and symbolic floats, which a mark cannot hold, by None."""
    tensors, sizes = iter(given.values), iter(given.sizes)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[place] = next(tensors)
        elif isinstance(leaf, SymInt):
            leaves[place] = next(sizes)
        elif isinstance(leaf, SymFloat | SymBool):
            leaves[place] = None
