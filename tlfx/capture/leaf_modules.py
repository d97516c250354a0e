"""Modules that have a rule of their own: capture marks where each call of one begins and ends, so that propagation
takes it as a single operator and does not look inside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tlfx.capture.regions import is_needed
from tlfx.rules.registry import REGISTRY

__all__ = ["ModuleCall", "call_of", "collect_calls", "marked", "sources_of"]

_CALL = "tlfx_module_call"


@dataclass(eq=False)
class ModuleCall:
    """A call of a module with a rule: its arguments and outputs, nodes of the graph in place of tensors."""

    module: nn.Module
    leaves: list[Any]
    spec: TreeSpec
    outputs: list[Node] = field(default_factory=list)
    inner: list[Node] = field(default_factory=list)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        args, kwargs = tree_unflatten(self.leaves, self.spec)
        return tuple(args), dict(kwargs)

    @property
    def last(self) -> Node:
        """The last node that the call computes: what follows it can read all of its outputs."""
        return self.inner[-1]


def call_of(node: Node) -> ModuleCall | None:
    """The call of a module with a rule that a node lies in."""
    found: ModuleCall | None = node.meta.get(_CALL)
    return found


@torch.library.custom_op("tlfx::mark", mutates_args=(), schema="(Tensor[] values, int call, bool leaves) -> ()")
def _mark(values: Sequence[Tensor], call: int, leaves: bool) -> None:
    """Tells a graph that a call takes or gives these values."""


@_mark.register_fake
def _(values: Sequence[Tensor], call: int, leaves: bool) -> None:
    return None


torch.fx.node.has_side_effect(torch.ops.tlfx.mark.default)


@contextlib.contextmanager
def marked(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """While the context is open, each call of a module with a rule marks its values; gives the list of those calls."""
    calls: list[ModuleCall] = []
    open_calls: list[int] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        open_calls.append(len(calls))
        calls.append(ModuleCall(module, leaves, spec))
        torch.ops.tlfx.mark([x for x in leaves if isinstance(x, Tensor)], open_calls[-1], False)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        tensors = [x for x in tree_flatten(output)[0] if isinstance(x, Tensor)]
        torch.ops.tlfx.mark(tensors, open_calls.pop(), True)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if REGISTRY.find_module(module) is not None:
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        yield calls


def collect_calls(graph: Graph, calls: Sequence[ModuleCall]) -> None:
    """Tell every node inside a call of that call, and take the marks out. Of nested calls the outer one counts."""
    current: tuple[int, ModuleCall] | None = None
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.tlfx.mark.default:
            values, number, leaves = node.args
            if current is None and not leaves:
                current = number, calls[number]
                _name_arguments(calls[number], values)
            elif current is not None and current[0] == number and leaves:
                current[1].outputs = list(values)
                current = None
            graph.erase_node(node)
        elif current is not None and node.op == "call_function":
            current[1].inner.append(node)
    graph.eliminate_dead_code(is_needed)
    alive = set(graph.nodes)
    for call in calls:
        call.inner = [node for node in call.inner if node in alive]
        for node in call.inner:
            node.meta[_CALL] = call


def sources_of(node: Node) -> list[Node]:
    """What a node is computed from; of a call of a module with a rule, its arguments."""
    call = call_of(node)
    return node.all_input_nodes if call is None else [x for x in call.leaves if isinstance(x, Node)]


def _name_arguments(call: ModuleCall, values: Sequence[Node]) -> None:
    given = iter(values)
    call.leaves = [next(given) if isinstance(x, Tensor) else x for x in call.leaves]
