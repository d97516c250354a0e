"""Floating-point operations of a node, by torch.utils.flop_counter: a multiplication and an addition count as two."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from tlfx.graph.nodes import hint
from tlfx.rules.registry import operator_name

__all__ = ["flops"]

_CONTRACTIONS = frozenset(
    f"aten.{name}"
    for name in (
        *("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
        *(f"conv{'_transpose' * transposed}{n}d" for transposed in (False, True) for n in (1, 2, 3)),
    )
)


def flops(node: Node) -> int:
    """FLOPs of a contraction or convolution at the example's batch size; 0 for every other node.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> inspect(nn.Conv2d(3, 8, 4, 4), input_size=(3, 32, 32)).flops
    49152
    """
    if ".".join(operator_name(node.target).split(".")[:2]) not in _CONTRACTIONS:
        return 0
    args, kwargs = map_arg((node.args, node.kwargs), _on_meta)
    with FlopCounterMode(display=False, custom_mapping=_VECTOR_PRODUCTS) as counter:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops())


def _on_meta(node: Node) -> Any:
    """A tensor of the node's shape without data, or the number that the node holds."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return hint(value)
    # One floating type for all: under autocast, the operands of a captured operator may differ in type.
    floating = value.is_floating_point() or value.is_complex()
    dtype = torch.float32 if floating else value.dtype
    return torch.empty([int(hint(size)) for size in value.shape], dtype=dtype, device="meta")


def _vector_product(first: Sequence[int], second: Sequence[int], *_: Any, **__: Any) -> int:
    """A matrix or vector times a vector, which torch.utils.flop_counter has no formula for."""
    return 2 * prod(first)


_VECTOR_PRODUCTS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), _vector_product)
