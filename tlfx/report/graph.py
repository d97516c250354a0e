"""The graph of a report as a networkx graph, and its export to GraphML and Graphviz."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import networkx as nx  # type: ignore[import-untyped]

from tlfx.report.data import NodeReport

__all__ = ["digraph", "to_dot", "to_graphml"]

Graph = Any
"""A networkx.DiGraph of node names, in execution order."""


def digraph(nodes: Iterable[NodeReport]) -> Graph:
    """A networkx.DiGraph of all nodes in order of execution, with text and numbers as attributes.

    Edges into a residual have ``kind`` skip or branch, all other edges have ``kind`` data.
    """
    graph = nx.DiGraph()
    reports = list(nodes)
    names = {node.name for node in reports}
    for node in reports:
        graph.add_node(node.name, **_attributes(node))
    for node in reports:
        branch = {*node.branch}
        for source in node.inputs:
            if source in names:
                kind = "data" if node.skip is None else "branch" if source in branch else "skip"
                graph.add_edge(source, node.name, kind=kind)
    return graph


def _attributes(node: NodeReport) -> dict[str, str | int | bool]:
    return {
        "operator": node.operator,
        "class": node.operation.value,
        "module": node.module,
        "module_class": node.module_class,
        "before": node.before,
        "after": node.after,
        "rule": node.rule,
        "why": node.why,
        "flops": node.flops,
        "read": node.read,
        "skip": node.skip or "",
    }


def to_graphml(graph: Graph) -> str:
    """A graph as GraphML text.

    >>> import networkx as nx
    >>> to_graphml(nx.DiGraph([("x", "y")])).splitlines()[0]
    "<?xml version='1.0' encoding='utf-8'?>"
    """
    return "<?xml version='1.0' encoding='utf-8'?>\n" + "\n".join(nx.generate_graphml(graph)) + "\n"


def to_dot(graph: Graph, colors: dict[str, str]) -> str:
    """A graph as Graphviz text, nodes in the colour of their class and grouped by module."""
    lines = ["digraph model {", '  node [shape=box, style="rounded,filled", fontname="sans-serif", color="#00000022"];']
    by_module: dict[str, list[str]] = {}
    for name, data in graph.nodes(data=True):
        by_module.setdefault(data["module"], []).append(name)
    for place, (module, names) in enumerate(by_module.items()):
        lines += [f"  subgraph cluster_{place} {{", f"    label={_quoted(module)};"]
        lines += [f"    {_dot_node(name, graph.nodes[name], colors)}" for name in names]
        lines.append("  }")
    for source, target, data in graph.edges(data=True):
        style = " [style=bold, penwidth=2]" if data["kind"] == "skip" else ""
        lines.append(f"  {_quoted(source)} -> {_quoted(target)}{style};")
    return "\n".join([*lines, "}", ""])


def _dot_node(name: str, data: dict[str, Any], colors: dict[str, str]) -> str:
    label = "\\n".join(part for part in (name, data["after"]) if part)
    return f'{_quoted(name)} [label={_quoted(label)}, fillcolor="{colors[data["class"]]}", class="{data["class"]}"];'


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
