"""Autograd functions in an aligned graph: each call is one node, which replaces the operators captured inside it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from tlfx._torch import tree_leaves, tree_unflatten
from tlfx.capture.autograd_functions import source_of
from tlfx.capture.regions import FunctionCall, RegionTree
from tlfx.errors import RuleError
from tlfx.graph.aliasing import storage_of, written_storages
from tlfx.graph.nodes import describe

__all__ = ["FunctionCalls"]


class FunctionCalls:
    """The calls of autograd functions in a copy of a captured graph; ``copies`` gives the copy of each node."""

    def __init__(self, regions: RegionTree, graph: Graph, copies: dict[Node, Node]) -> None:
        self.regions = regions
        self.graph = graph
        self.copies = copies
        self.written = {call: self._write(call) for call in regions.function_calls}
        """The nodes of each call: the call itself, then one for each tensor that it returns."""

    def end_of(self, node: Node) -> Node | None:
        """The last node of the call that contains a captured node, if any."""
        call = self.regions.function_call_of(node)
        return None if call is None else self.written[call][-1]

    def check_read(self, after: Node, node: Node) -> None:
        """Raise RuleError if a label after one captured node cannot read another node, because that is inside a call or
        overwritten by it."""
        call = self.regions.function_call_of(node)
        if call is not None and node not in call.results:
            raise RuleError(
                f"labels need {node.name}, which the autograd function {call.name} computes inside; it runs as a "
                f"whole, so that only its arguments and outputs can be read\n{describe(node)}\n"
                f"  function: {source_of(call.subject)}\n{_remedy(call)}"
            )
        around = self.regions.function_call_of(after)
        if around is not None and call is None and storage_of(node) in written_storages(around.nodes):
            raise RuleError(
                f"labels need {node.name} as it is before the autograd function {around.name} writes to it\n"
                f"{describe(after)}\n  function: {source_of(around.subject)}\n{_remedy(around)}"
            )

    def _write(self, call: FunctionCall) -> list[Node]:
        """Replace the inside of the call by one node for the call, and one for each tensor that it returns."""
        # without copies, nodes inside cannot be read by labels
        inside = {node: self.copies.pop(node) for node in call.nodes}
        inputs = tuple(self.copies[x] for x in call.inputs if isinstance(x, Node))
        # other outputs are numbers or None
        places = [i for i, x in enumerate(call.outputs) if isinstance(x, Node)]
        with self.graph.inserting_after(inside[call.last]):
            applied = self.graph.create_node("call_function", _applied(call, places), (inputs,), name=call.name.lower())
        written = [applied]
        for place, node in enumerate(call.results):
            with self.graph.inserting_after(written[-1]):
                written.append(self.graph.call_function(operator.getitem, (applied, place)))
            self.copies[node] = written[-1]
            inside[node].replace_all_uses_with(written[-1])
            written[-1].meta = inside[node].meta
        names = [inside[node].name for node in call.results]
        for copy in reversed(inside.values()):
            self.graph.erase_node(copy)
        for node, name in zip(call.results, names, strict=True):
            # the name is free as soon as the node inside the call is erased
            self.copies[node].name = name
        return written


def _remedy(call: FunctionCall) -> str:
    return f"Register a rule for it, @tlfx.rules.rule({call.name}), or let it return what labels need."


def _applied(call: FunctionCall, places: list[int]) -> Callable[..., Any]:
    """The call as a function of the tensors and sizes among its arguments; it returns the tensors of its output."""
    function, spec = call.subject, call.spec
    is_given = [isinstance(x, Node) for x in call.inputs]
    fixed = [None if given else x for given, x in zip(is_given, call.inputs, strict=True)]

    def apply(values: tuple[Any, ...]) -> tuple[Any, ...]:
        rest = iter(values)
        leaves = [next(rest) if given else x for given, x in zip(is_given, fixed, strict=True)]
        args, kwargs = tree_unflatten(leaves, spec)
        outputs = tree_leaves(function.apply(*args, **kwargs))
        return tuple(outputs[place] for place in places)

    apply.__name__ = f"{function.__name__}_apply"
    return apply
