"""Statistics over axes: aggregation over tokens, channel mixing over channels."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.provenance import Value
from tlfx.rule import rule
from tlfx.verbs import Op

aten = torch.ops.aten


@rule(
    aten.mean,
    aten.sum,
    aten.prod,
    aten.amax,
    aten.amin,
    aten.logsumexp,
    aten.nansum,
    aten.nanmean,
    aten.all,
    aten.any,
)
def reduce(op: Op, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """Y ← Norm(Σ Yᵢ) over the reduced axes."""
    return op.reduce(x, dim, keepdim)


@rule(aten.var, aten.std)
def deviation(
    op: Op, x: Value, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None
) -> Value:
    """Likewise; the overloads put a correction where others put the bias flag."""
    return op.reduce(x, None if isinstance(dim, bool) else dim, keepdim)


@rule(aten.var_mean, aten.std_mean)
def deviation_and_mean(
    op: Op, x: Value, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None
) -> list[Value]:
    """Both."""
    reduced = op.reduce(x, None if isinstance(dim, bool) else dim, keepdim)
    return [reduced, reduced]


@rule(aten.norm, aten.linalg_vector_norm)
def norm(op: Op, x: Value, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """The length of a vector."""
    return op.reduce(x, dim, keepdim)


@rule(aten.max, aten.min)
def extreme(op: Op, x: Value, other: Any = None, keepdim: bool = False) -> Any:
    """Largest of all, along an axis (with indices), or of two values."""
    if isinstance(other, Value):
        return op.either(x, other)
    reduced = op.reduce(x, other, keepdim)
    return reduced if other is None else [reduced, op.weight()]


@rule(aten.median, aten.mode, aten.aminmax)
def extreme_with_indices(op: Op, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    """A value and its index along an axis."""
    return [op.reduce(x, dim, keepdim), op.weight()]


@rule(aten.argmax, aten.argmin, aten.argsort, aten.count_nonzero, aten.nonzero)
def decide(op: Op, x: Value, *settings: Any, **options: Any) -> Value:
    """Where something lies, not what it is: a decision without label."""
    return op.weight()
