"""The operators of a model without a rule, and a template of a rule for each."""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from tlfx._torch import HigherOrderOperator, OpOverload, schema, tree_leaves
from tlfx.errors import TlfxError
from tlfx.graph.nodes import module_path, shapes
from tlfx.propagate.options import Options
from tlfx.propagate.propagator import Propagator
from tlfx.propagate.values import Value
from tlfx.rules.registry import REGISTRY, operator_name
from tlfx.trace import trace

__all__ = ["HEADER", "Missing", "missing"]

HEADER = '''\
"""Rules for operators that tlfx does not know. Install them as a package that names this module in its pyproject.toml:

    [project.entry-points."tlfx.rules"]
    my_rules = "my_rules"

Each rule states the effect of an operator on labels by a method of tlfx.propagate.OpContext, such as

    op.pointwise(x)               element-wise: Y ← Y
    op.move()                     data movement (view, roll, slice): runs the operator on the map of label ids
    op.contract(x, axis, weight)  a linear layer along an axis
    op.reduce(x, axes)            a sum, mean or maximum over axes: Y ← Norm(Σ Yᵢ)
    op.residual(a, b)             a sum of two values: Y ← Norm(Y + g(Y))
    op.weight()                   no label: scores, indices, masks
"""

from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.rules import rule
from tlfx.propagate.verbs import OpContext
'''
_TYPES = {"Tensor": "Value", "Optional[Tensor]": "Value | None", "List[Tensor]": "list[Value]"}


@dataclass(frozen=True, eq=False)
class Missing:
    """An operator without a rule, and the nodes of the graph that call it on image content."""

    operator: Any
    nodes: list[Node]

    @property
    def name(self) -> str:
        """Name of the operator, without its overload: ``aten.cumprod``."""
        return operator_name(self.operator)

    @property
    def places(self) -> list[str]:
        """Paths of the modules that call it, in order, without duplicates."""
        return list(dict.fromkeys(module_path(n) or "the model itself" for n in self.nodes))

    def skeleton(self) -> str:
        """A template of a rule: Python code that is valid after :data:`HEADER`."""
        first = self.nodes[0]
        given = ", ".join(str(s) for n in first.all_input_nodes for s in shapes(n))
        made = ", ".join(str(s) for s in shapes(first))
        name = _identifier(self.name.rpartition(".")[2])
        return (
            f"@rule({_expression(self.operator)})\n"
            f"def {name}({_parameters(first)}) -> {'Value' if len(shapes(first)) < 2 else 'list[Value]'}:\n"
            f'    """Called in {self.places[0]}: {given} -> {made}."""\n'
            f"    return {_body(first)}\n"
        )


def missing(model: nn.Module, images: Tensor) -> list[Missing]:
    """The operators without a rule that receive image content, in the order of their first call.

    If propagation stops at an error, every later operator without a rule is included. Raises CaptureError.

    >>> import torch
    >>> from torch import nn
    >>> missing(nn.Conv2d(3, 8, 4), torch.rand(2, 3, 8, 8))
    []
    """
    propagator = trace(model, images, Options(on_unknown="pointwise")).propagator()
    with contextlib.suppress(TlfxError):
        propagator.run()
    by_operator: dict[Any, list[Node]] = {}
    for node in _without_rule(propagator):
        by_operator.setdefault(getattr(node.target, "overloadpacket", node.target), []).append(node)
    return [Missing(operator, nodes) for operator, nodes in by_operator.items()]


def _without_rule(propagator: Propagator) -> Iterator[Node]:
    """Calls of operators without a rule on image content, and all of them after the node where propagation stopped."""
    for node in propagator.graph_module.graph.nodes:
        if node.op != "call_function" or not shapes(node) or REGISTRY.find(node.target) is not None:
            continue
        if propagator.regions.ruled_call_of(node) is not None:
            continue
        operands = [v for n in node.all_input_nodes for v in tree_leaves(propagator.values.get(n))]
        if node not in propagator.values or any(isinstance(v, Value) and not v.is_constant for v in operands):
            yield node


def _expression(operator: Any) -> str:
    """Python code that names an operator."""
    if isinstance(operator, HigherOrderOperator):
        return f"torch.ops.higher_order.{operator.name()}"
    module = getattr(operator, "__module__", "") or ""
    if module.startswith("torch.ops") or hasattr(operator, "overloads"):
        return f"torch.ops.{operator_name(operator)}"
    return f"{module}.{getattr(operator, '__qualname__', operator)}".lstrip(".")


def _parameters(node: Node) -> str:
    """Parameters of a rule, from the operator's schema."""
    written = ["op: OpContext"]
    for argument in _arguments(node):
        if argument.kwarg_only and "*" not in written:
            written.append("*")
        default = f" = {_default(argument)}" if argument.has_default_value() else ""
        written.append(f"{_identifier(argument.name)}: {_TYPES.get(str(argument.type), 'Any')}{default}")
    return ", ".join(written if len(written) > 1 else [*written, "*args: Any", "**kwargs: Any"])


def _body(node: Node) -> str:
    """A first guess: element-wise if the shape is kept, data movement otherwise."""
    values = [_identifier(a.name) for a in _arguments(node) if str(a.type) == "Tensor"]
    if len(shapes(node)) > 1:
        return "op.move_each()"
    kept = bool(node.all_input_nodes) and shapes(node) == shapes(node.all_input_nodes[0])
    return f"op.pointwise({values[0]})" if kept and values else "op.move()"


def _arguments(node: Node) -> Sequence[Any]:
    return schema(node.target).arguments if isinstance(node.target, OpOverload) else ()


def _default(argument: Any) -> str:
    value = argument.default_value
    return repr(value) if isinstance(value, int | float | str | None) else "None"


def _identifier(name: str) -> str:
    return "x" if name == "self" else f"{name}_" if keyword.iskeyword(name) or not name.isidentifier() else name
