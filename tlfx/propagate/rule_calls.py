"""Calls of rules: errors tell the operator, its module and its source line."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from tlfx._torch import tree_leaves, tree_map
from tlfx.errors import ProvenanceError, RuleError, TlfxError, UnknownOperatorError, a_type
from tlfx.graph.nodes import describe
from tlfx.operations import Operation
from tlfx.propagate.state import PropagationState
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules.registry import REGISTRY, Rule, operator_name

__all__ = ["apply_rule", "call_rule", "operation_of"]


def apply_rule(
    node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: PropagationState
) -> tuple[Any, Operation]:
    """The values that an operator with content among its arguments gives, and its operation.

    Raises UnknownOperatorError for an operator without a rule, unless ``on_unknown`` lets labels pass it.
    """
    op = OpContext(node, args, dict(kwargs), state)
    rule = REGISTRY.find(node.target)
    if rule is not None:
        out = call_rule(rule, op, *args, **kwargs)
        return out, operation_of(op, out)
    if state.options.on_unknown == "pointwise":
        return _pass_through(op), Operation.POINTWISE
    raise UnknownOperatorError(
        f"no rule for the operator {operator_name(node.target)}\n{describe(node)}\n"
        "Write one with tlfx.rules.rule, or pass on_unknown='pointwise' to let labels pass where the shape is kept."
    )


def call_rule(rule: Rule, op: OpContext, *args: Any, **kwargs: Any) -> Any:
    """The result of a rule. Raises its TlfxErrors with the place in the model, and RuleError for any other error."""
    if not rule.contexts:
        args, kwargs, op.args, op.kwargs = _resolved(op, (args, kwargs, op.args, op.kwargs))
    try:
        return _with_samples(op, _checked(rule, op, rule.function(op, *args, **kwargs)))
    except TlfxError as error:
        raise type(error)(f"{error}\n{describe(op.node)}") from error
    except Exception as error:
        raise RuleError(
            f"the rule {rule.origin} failed: {type(error).__name__}: {error}\n{describe(op.node)}"
        ) from error


def _resolved(op: OpContext, arguments: Any) -> Any:
    """Arguments with contexts as content, each value once."""
    # by identity: an operand that occurs twice, as in x * x, stays one object
    known: dict[int, Value] = {}

    def resolve(value: Any) -> Any:
        if not isinstance(value, Value) or value.role is not Role.CONTEXT:
            return value
        return known.setdefault(id(value), op.resolve(value))

    return tree_map(resolve, arguments)


def _checked(rule: Rule, op: OpContext, out: Any) -> Any:
    """What a rule returns. Raises RuleError for anything but the values that the operator computes."""
    expected = op.node.meta.get("val")
    tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    missing = isinstance(expected, Tensor) and len(op.shapes) == 1 and not isinstance(out, Value)
    if tensors or missing or (out is None and expected is not None):
        given = "None" if out is None else a_type(tensors[0] if tensors else out)
        raise RuleError(
            f"the rule {rule.origin} returned {given}, expected a tlfx.propagate.Value for each tensor that the "
            "operator returns: return the result of a verb, such as op.pointwise(x)"
        )
    return out


def _with_samples(op: OpContext, out: Any) -> Any:
    """What a rule returns, marked where an argument is computed over several samples of the batch.

    Raises ProvenanceError if such an argument reaches content.
    """
    if op.target is operator.getitem:
        return out  # one of several outputs, of which others may be statistics of the batch
    values = [v for v in tree_leaves((op.args, op.kwargs)) if isinstance(v, Value)]
    source = next((v.mixes_samples for v in values if v.mixes_samples is not None), None)

    def mark(value: Any) -> Any:
        if source is None or not isinstance(value, Value) or value.is_constant:
            return value
        if value.role is Role.WEIGHT:
            return replace(value, mixes_samples=source)
        raise ProvenanceError(
            f"{op.node.name} depends on {source.name}, which is computed over several samples of the batch; labels "
            "belong to one sample each. Compute it for each sample by itself, use a layer of batch normalisation for "
            "statistics of the batch, or align the part of the model before it instead."
        )

    return tree_map(mark, out)


def operation_of(op: OpContext, out: Any) -> Operation:
    """The operation of a node: the one that its verbs recorded, unless its value is a weight or a constant."""
    first = out[0] if isinstance(out, list | tuple) and out else out
    if not isinstance(first, Value) or first.is_constant:
        return Operation.CONSTANT
    return Operation.WEIGHT if first.role is Role.WEIGHT else op.operation


def _pass_through(op: OpContext) -> Value:
    """The first argument with content that has the shape of the output, else a weight."""
    content = [v for v in tree_leaves((op.args, op.kwargs)) if isinstance(v, Value) and not v.is_constant]
    same = [v for v in content if v.shape == op.shape]
    return op.pointwise(same[0]) if same else op.weight()
