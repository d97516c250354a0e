"""Residual connections at the end of spatial mixing: one call for both, which is one kernel on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Graph, Node

from tlfx import runtime
from tlfx.capture.regions import Region

__all__ = ["fuse_residuals"]

MIXING = (runtime.attention, runtime.convolve, runtime.mix, runtime.resample)


def fuse_residuals(graph: Graph, innermost: Mapping[Node, Region]) -> None:
    """Replace each average of labels and of what spatial mixing makes of labels, if nothing else reads that.

    ``innermost`` gives the innermost region of nodes: calls of two regions are not joined.
    """
    place: dict[Node, float] = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is not runtime.average:
            continue
        for residual, mixed in (node.args, node.args[::-1]):
            # a kernel takes one residual, and keeps no labels from before it
            is_last = mixed.target in MIXING and len(mixed.users) == 1 and "residual" not in mixed.kwargs
            known = max(place[n] for n in (residual.all_input_nodes or [residual])) < place[mixed]
            if is_last and known and len({innermost.get(n) for n in (node, mixed, residual)}) == 1:
                if place[residual] > place[mixed]:  # labels picked from others, where the average reads them
                    mixed.prepend(residual)
                    place[residual] = place[mixed] - 0.5
                mixed.update_kwarg("residual", residual)
                node.replace_all_uses_with(mixed)
                graph.erase_node(node)
                break
