"""Liveness: the node of a graph that reads a value for the last time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.fx import Graph, Node

from tlfx.graph.aliasing import written_argument

__all__ = ["last_reads", "nodes_read"]


def last_reads(
    graph: Graph,
    sources_of: Callable[[Node], Iterable[Node]] = lambda node: node.all_input_nodes,
    reader_of: Callable[[Node], Node] = lambda node: node,
) -> dict[Node, list[Node]]:
    """The nodes that each node reads for the last time; a node that nothing reads is not among them.

    ``sources_of`` gives further nodes that a node reads, ``reader_of`` the node at which its reads count.

    >>> graph = Graph()
    >>> a = graph.placeholder("a")
    >>> b = graph.call_function(abs, (a,))
    >>> c = graph.call_function(max, (a, b))
    >>> {reader.name: [n.name for n in read] for reader, read in last_reads(graph).items()}
    {'max_1': ['a', 'abs_1']}
    """
    last: dict[Node, list[Node]] = {}
    known: set[Node] = set()
    for node in reversed(graph.nodes):
        for source in (*node.all_input_nodes, *sources_of(node)):
            if source not in known:
                known.add(source)
                last.setdefault(reader_of(node), []).append(source)
    return last


def nodes_read(graph: Graph) -> set[Node]:
    """The nodes that the output depends on, and those that write in place, with what these read.

    >>> graph = Graph()
    >>> a = graph.placeholder("a")
    >>> b, c = graph.call_function(abs, (a,)), graph.call_function(max, (a,))
    >>> output = graph.output(c)
    >>> b in nodes_read(graph), c in nodes_read(graph)
    (False, True)
    """
    read: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in read or written_argument(node) is not None:
            read.update((node, *node.all_input_nodes))
    return read
