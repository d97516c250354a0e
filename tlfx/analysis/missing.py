"""The operators that a model needs and that have no rule, and a rule to begin with for each."""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from tlfx._torch import HigherOrderOperator, OpOverload, pytree, schema
from tlfx.capture.leaf_modules import call_of
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

Each rule says what becomes of the labels, with one of the verbs of tlfx.propagate.OpContext, such as

    op.pointwise(x)               element-wise: Y ← Y
    op.move()                     data movement (view, roll, slice): the operator itself run on the map of labels
    op.contract(x, axis, weight)  a linear layer along an axis
    op.reduce(x, axes)            a sum, mean or maximum over axes: Y ← Norm(Σ Yᵢ)
    op.residual(a, b)             a sum of two values: Y ← Norm(Y + g(Y))
    op.weight()                   no label: scores, indices, gates
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
        """Paths of the modules it is called in, in order, each once."""
        return list(dict.fromkeys(module_path(n) or "the model itself" for n in self.nodes))

    def skeleton(self) -> str:
        """A rule to edit, Python code that is valid after :data:`HEADER`."""
        first = self.nodes[0]
        given = ", ".join(str(s) for n in first.all_input_nodes for s in shapes(n))
        made = ", ".join(str(s) for s in shapes(first))
        name = _identifier(self.name.rpartition(".")[2])
        return (
            f"@rule({_expression(self.operator)})\n"
            f"def {name}({_parameters(first)}) -> {'Value' if len(shapes(first)) < 2 else 'list[Value]'}:\n"
            f'    """Met in {self.places[0]}: {given} -> {made}."""\n'
            f"    return {_body(first)}\n"
        )


def missing(model: nn.Module, images: Tensor) -> list[Missing]:
    """The operators without a rule that touch image content, in the order of their first call.

    Where propagation stops early, every later operator without a rule is counted. Raises CaptureError.

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
    """Calls of operators without a rule that are given content, or may be: where propagation stopped, labels are not
    known from there on."""
    for node in propagator.graph_module.graph.nodes:
        if node.op != "call_function" or not shapes(node) or call_of(node) or REGISTRY.find(node.target) is not None:
            continue
        operands = [v for n in node.all_input_nodes for v in pytree.tree_leaves(propagator.values.get(n))]
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
    """The verb to begin with: element-wise where the shape is kept, data movement elsewhere."""
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
