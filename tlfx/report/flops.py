"""Floating-point operations by shape formula: a multiplication and an addition count as two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils.flop_counter import bmm_flop, conv_flop_count, sdpa_flop_count

from tlfx.graph.nodes import hint, shapes
from tlfx.rules.registry import operator_name

__all__ = ["flops"]

Shape = Sequence[int]


def flops(node: Node) -> int:
    """FLOPs of a node at the example's batch size; 0 for what is neither a contraction nor a convolution.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> inspect(nn.Conv2d(3, 8, 4, 4), input_size=(3, 32, 32)).flops
    49152
    """
    name = ".".join(operator_name(node.target).split(".")[:2])
    formula = _FORMULAS.get(name)
    if formula is None:
        return 0
    return int(formula(node, [_shape(arg) for arg in node.args]))


def _shape(arg: Any) -> Shape:
    """Shape of a tensor argument, () for any other."""
    if not isinstance(arg, Node) or not isinstance(arg.meta.get("val"), Tensor):
        return ()
    return [int(hint(size)) for size in arg.meta["val"].shape]


def _linear(node: Node, given: list[Shape]) -> int:
    """x (*lead, in), weight (out, in)."""
    x, weight = given[0], given[1]
    return bmm_flop((1, prod(x[:-1]), x[-1]), (1, weight[-1], weight[0]))


def _matmul(node: Node, given: list[Shape]) -> int:
    """a (*lead, m, k), b (*lead, k, n), the leading axes broadcast."""
    return 2 * prod(shapes(node)[0]) * given[0][-1]


def _addmm(node: Node, given: list[Shape]) -> int:
    """bias, a (*lead, m, k), b (*lead, k, n)."""
    return 2 * prod(shapes(node)[0]) * given[1][-1]


def _conv(node: Node, given: list[Shape]) -> int:
    """x (batch, in, *size), weight (out, in / groups, *kernel)."""
    return conv_flop_count(list(given[0]), list(given[1]), list(shapes(node)[0]))


def _conv_transpose(node: Node, given: list[Shape]) -> int:
    """x (batch, in, *size), weight (in, out / groups, *kernel)."""
    return conv_flop_count(list(given[0]), list(given[1]), list(shapes(node)[0]), transposed=True)


def _attention(node: Node, given: list[Shape]) -> int:
    """Query, key and value (*lead, heads, tokens, channels)."""
    query, key, value = ([prod(s[:-3]), *([1] * (3 - len(s)) + list(s))[-3:]] for s in given[:3])
    return int(sdpa_flop_count(query, key, value))


def _einsum(node: Node, given: list[Shape]) -> int:
    """A product of operands whose axes go by letters."""
    operands = node.args[1]
    letters = str(node.args[0]).replace(" ", "").split("->")[0].split(",")
    held = [_shape(arg) for arg in operands] if isinstance(operands, list | tuple) else []
    sizes = {c: s for names, shape in zip(letters, held, strict=False) for c, s in zip(names, shape, strict=False)}
    return (2 if len(held) > 1 else 0) * prod(sizes.values())


_FORMULAS: dict[str, Callable[[Node, list[Shape]], int]] = {
    "aten.linear": _linear,
    **dict.fromkeys(("aten.matmul", "aten.bmm", "aten.mm", "aten.mv"), _matmul),
    **dict.fromkeys(("aten.addmm", "aten.baddbmm"), _addmm),
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), _conv),
    **dict.fromkeys(("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"), _conv_transpose),
    "aten.scaled_dot_product_attention": _attention,
    "aten.einsum": _einsum,
}
