"""Lifetimes: after which node of a graph nothing reads a value any more."""

from __future__ import annotations

from torch.fx import Graph, Node

from tlfx.opaque import call_of, sources_of

__all__ = ["last_reads"]


def last_reads(graph: Graph) -> dict[Node, list[Node]]:
    """The nodes that are read for the last time by each node; what a call of a module with a rule reads is read at its
    end, and what nothing reads is not among them.

    >>> graph = Graph()
    >>> a = graph.placeholder("a")
    >>> b = graph.call_function(abs, (a,))
    >>> c = graph.call_function(max, (a, b))
    >>> {reader.name: [n.name for n in read] for reader, read in last_reads(graph).items()}
    {'max_1': ['a', 'abs_1']}
    """
    found: dict[Node, list[Node]] = {}
    known: set[Node] = set()
    for node in reversed(graph.nodes):
        call = call_of(node)
        reader = node if call is None else call.last
        for source in (*node.all_input_nodes, *sources_of(node)):
            if source not in known:
                known.add(source)
                found.setdefault(reader, []).append(source)
    return found
