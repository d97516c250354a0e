"""Calls with a rule: of modules and of autograd functions, whose inner graph labels do not follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from tlfx._torch import tree_leaves, tree_map
from tlfx.capture.regions import CallRegion
from tlfx.errors import RuleError
from tlfx.graph.aliasing import storage_of
from tlfx.graph.nodes import describe, shapes
from tlfx.operations import Operation
from tlfx.propagate.rule_calls import call_rule, operation_of
from tlfx.propagate.state import PropagationState
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import CallContext
from tlfx.propagate.writes import InPlaceWrites
from tlfx.rules.registry import REGISTRY

__all__ = ["RuledCalls"]


class RuledCalls:
    """Applies the rules of modules and autograd functions to the values of a propagation."""

    def __init__(
        self,
        values: dict[Node, Any],
        operations: dict[Node, Operation],
        writes: InPlaceWrites,
        state: PropagationState,
    ) -> None:
        self._values = values
        self._operations = operations
        self._writes = writes
        self._state = state

    def apply(self, call: CallRegion) -> None:
        """Give the outputs of a call the values that its rule returns; nothing if no argument has content."""
        args, kwargs = tree_map(lambda a: self._values.get(a) if isinstance(a, Node) else a, call.arguments)
        if all(v.is_constant for v in tree_leaves((args, kwargs)) if isinstance(v, Value)):
            return
        op = CallContext(call, args, kwargs, self._state)
        rule = REGISTRY.find_class(call.kind)
        assert rule is not None
        out = call_rule(rule, op, call.subject, *args, **kwargs)
        values = [v for v in tree_leaves(out) if isinstance(v, Value)]
        if len(values) != len(call.results):
            raise RuleError(
                f"the rule {rule.origin} gives {len(values)} values for {call.noun} that returns {len(call.results)} "
                f"tensors\n{describe(call.last)}"
            )
        self._write_back(op, values)
        for node, value in zip(call.results, values, strict=True):
            # an output may also be an argument that the call returns unchanged
            if node in call.nodes:
                self._values[node] = op.output(value, node)
                self._operations[node] = operation_of(op, value)

    def _write_back(self, op: CallContext, values: Sequence[Value]) -> None:
        """Where a call writes to its arguments, all views of them follow the output that shares their storage."""
        call = op.call
        self._writes.add(call.last)
        changed = self._writes.written_by(call.nodes)
        lost = [
            node
            for node in self._with_content([*changed, *call.nodes])
            if node not in call.results and any(self._is_read_by(user) for user in node.users)
        ]
        for node, value in zip(call.results, values, strict=True):
            if storage_of(node) in changed.values():
                self._writes.write(node, value, op)
                lost = [n for n in lost if storage_of(n) != storage_of(node)]
        if lost:
            raise RuleError(
                f"{call.name} is {call.as_ruled}, and {lost[0].name}, which it computes "
                f"or writes to and does not return, is read after it: no rule can tell its label\n{describe(call.last)}"
            )

    def _with_content(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of ``nodes`` (in order) that are computed from content, inside a call or not."""
        content: set[Node] = set()
        for node in nodes:
            sources = {node, *node.all_input_nodes}
            values = [self._values[n] for n in sources]
            if not content.isdisjoint(sources) or any(isinstance(v, Value) and not v.is_constant for v in values):
                content.add(node)
        return [node for node in nodes if node in content]

    def _is_read_by(self, user: Node) -> bool:
        """Whether a node that is not visited yet computes something from a value."""
        return user not in self._values and (user.op == "output" or bool(shapes(user)))
