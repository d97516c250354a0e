"""Stretches: label arithmetic without an operator of the model in between, in a graph that leaves autograd once.

Each function of label arithmetic leaves autograd and autocast by itself, which takes as long as the arithmetic of a few
tokens. In a stretch they do not need to."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from tlfx import runtime
from tlfx.graph.shells import graph_module_of
from tlfx.runtime.arithmetic import original_of, outside_autograd

__all__ = ["with_stretches"]

_PICKS = (runtime.gather, runtime.spread, runtime.view)
"""Functions that pick labels, which may be part of a stretch."""
_FEWEST = 3
"""Functions of label arithmetic from which a stretch is faster."""


def with_stretches(module: GraphModule) -> GraphModule:
    """The same function, its stretches of label arithmetic in separate graphs; itself if it has none."""
    stretches = list(_stretches(module.graph))
    if not stretches:
        return module
    first = {stretch[0]: stretch for stretch in stretches}
    inside = {node for stretch in stretches for node in stretch}
    graph, copies = Graph(), dict[Node, Node]()
    parts: dict[str, nn.Module] = {}
    for node in module.graph.nodes:
        if node in first:
            name = f"stretch_{len(parts)}"
            parts[name], inputs, outputs = _part(module, first[node])
            call = graph.create_node("call_module", name, tuple(copies[n] for n in inputs))
            copies |= {n: graph.call_function(operator.getitem, (call, i)) for i, n in enumerate(outputs)}
        elif node not in inside:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code(lambda n: n.op != "get_attr")
    graph.lint()
    return graph_module_of(graph, {**module._modules, **parts}, module._buffers, type(module).__name__)


def _stretches(graph: Graph) -> Iterator[list[Node]]:
    """Runs of calls on labels, without what is only read between them."""
    run: list[Node] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            continue
        if node.target in _PICKS or original_of(node.target) is not None:
            run.append(node)
            continue
        if _is_long(run):
            yield run
        run = []


def _is_long(run: Sequence[Node]) -> bool:
    return sum(original_of(node.target) is not None for node in run) >= _FEWEST


def _part(module: GraphModule, stretch: Sequence[Node]) -> tuple[nn.Module, list[Node], list[Node]]:
    """The module of a stretch, the nodes that it takes, and those that it returns."""
    inside = set(stretch)
    read = dict.fromkeys(n for node in stretch for n in node.all_input_nodes if n not in inside)
    inputs = [n for n in read if n.op != "get_attr"]
    outputs = [n for n in stretch if not inside.issuperset(n.users)]
    graph = Graph()
    copies = {n: graph.placeholder(n.name) for n in inputs}
    for node in stretch:
        for attribute in (n for n in node.all_input_nodes if n.op == "get_attr" and n not in copies):
            copies[attribute] = graph.node_copy(attribute)
        copies[node] = copied = graph.node_copy(node, copies.__getitem__)
        copied.target = original_of(node.target) or node.target
    graph.output(map_arg(tuple(outputs), copies.__getitem__))
    body = graph_module_of(graph, module._modules, module._buffers, "Stretch")
    return _Stretch(body), inputs, outputs


class _Stretch(nn.Module):
    """Runs a graph of label arithmetic outside autograd and autocast."""

    def __init__(self, body: GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, *values: Any) -> Any:
        """The labels that later nodes read."""
        return outside_autograd(self.body, *values)
