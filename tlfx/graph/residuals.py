"""Residual connections: where the skip starts, and the nodes of its two arms."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import networkx as nx  # type: ignore[import-untyped]
from torch.fx import Node

from tlfx.operations import Operation

__all__ = ["Arms", "content_graph", "residual_arms"]

Graph = Any
"""A networkx.DiGraph in execution order."""


class Arms(NamedTuple):
    """The two ways from the node ``start`` to a sum: the branch g, and the nodes on the skip connection, which are none
    unless it is a projection (the downsampling of a ResNet)."""

    start: Any
    branch: tuple[Any, ...]
    shortcut: tuple[Any, ...] = ()


def content_graph(
    operations: Mapping[Node, Operation],
    sources_of: Callable[[Node], Iterable[Node]] = lambda node: node.all_input_nodes,
) -> Graph:
    """Data flow between the nodes that hold or weigh image content; ``sources_of`` gives the inputs of a node."""
    graph = nx.DiGraph()
    content = {n for n, operation in operations.items() if operation is not Operation.CONSTANT}
    for node in operations:
        if node in content:
            graph.add_node(node)
            graph.add_edges_from((n, node) for n in sources_of(node) if n in content)
    return graph


def residual_arms(graph: Graph, operands: Iterable[Hashable]) -> Arms | None:
    """Where the skip connection of a sum of two operands starts, and the nodes of both arms.

    ``graph`` holds the nodes with image content in execution order. The skip starts at the last node that both operands
    depend on; g is the operand with more nodes since then. None where the operands share no ancestor.

    >>> import networkx as nx
    >>> residual_arms(nx.DiGraph([("x", "norm"), ("norm", "mlp")]), ["x", "mlp"])
    Arms(start='x', branch=('norm', 'mlp'), shortcut=())
    """
    known = [{o, *nx.ancestors(graph, o)} for o in operands]
    shared = set.intersection(*known) if len(known) > 1 else set()
    if not shared:
        return None
    order = {node: place for place, node in enumerate(graph)}
    skip = max(shared, key=order.__getitem__)
    after = nx.descendants(graph, skip)
    arms = sorted((after & nodes for nodes in known), key=len)
    shortcut, branch = (tuple(sorted(arm, key=order.__getitem__)) for arm in (arms[0] - arms[-1], arms[-1]))
    return Arms(skip, branch, shortcut)
