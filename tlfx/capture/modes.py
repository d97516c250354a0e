"""Inlining of the sub-graphs that torch.export makes for code under another autocast or gradient mode."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from tlfx._torch import enter_autocast, exit_autocast, wrap_with_autocast, wrap_with_set_grad_enabled

__all__ = ["inline_subgraphs"]


def inline_subgraphs(graph: Graph, held: dict[str, GraphModule]) -> None:
    """Replace each call of a sub-graph by its nodes, between nodes that enter and exit its mode."""
    autocast, set_grad = wrap_with_autocast(), wrap_with_set_grad_enabled()
    while calls := [n for n in graph.nodes if n.op == "call_function" and n.target in (autocast, set_grad)]:
        for node in calls:
            modes = 4 if node.target is autocast else 1
            enter, leave = (enter_autocast, exit_autocast) if modes == 4 else (set_gradients, reset_gradients)
            _inline(graph, node, modes, enter, leave, held)
    for node in list(graph.nodes):
        if node.op == "get_attr" and str(node.target) in held and not node.users:
            graph.erase_node(node)


def _inline(graph: Graph, call: Node, modes: int, enter: Any, leave: Any, held: dict[str, GraphModule]) -> None:
    region, *given = call.args[modes:]
    assert isinstance(region, Node)
    path = str(region.target)
    inner = held[path]
    with graph.inserting_before(call):
        mode = graph.call_function(enter, tuple(call.args[:modes]))
        copies: dict[Node, Any] = dict(zip((n for n in inner.graph.nodes if n.op == "placeholder"), given, strict=True))
        out = graph.graph_copy(inner.graph, copies)
        graph.call_function(leave, (mode,))
    for node, copy in copies.items():
        if node.op == "get_attr":
            copy.target = f"{path}.{node.target}"
            nested = getattr(inner, str(node.target))
            if isinstance(nested, GraphModule):
                held[copy.target] = nested
    outs = out if isinstance(out, list | tuple) else (out,)
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(outs[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(call)


def set_gradients(enabled: bool) -> bool:
    """Set the gradient mode and return the one before."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(enabled)
    return before


def reset_gradients(before: bool) -> None:
    """Set the gradient mode back."""
    torch.set_grad_enabled(before)


for _function in (set_gradients, reset_gradients, enter_autocast, exit_autocast):
    torch.fx.node.has_side_effect(_function)
