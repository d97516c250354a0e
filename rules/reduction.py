"""Statistics over axes: aggregation over tokens, channel mixing over channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.mean, aten.nanmean)
def mean(op: OpContext, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """Y ← Norm(Σ Yᵢ) over the reduced axes; of a product with a factor, Y ← Norm(|w|)·Y."""
    return op.reduce(x, dim, keepdim, linear="mean")


@rule(aten.sum, aten.nansum)
def total(op: OpContext, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """The same."""
    return op.reduce(x, dim, keepdim, linear="sum")


@rule(
    aten.prod,
    aten.amax,
    aten.amin,
    aten.all,
    aten.any,
)
def reduce(op: OpContext, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """Y ← Norm(Σ Yᵢ) over the reduced axes."""
    return op.reduce(x, dim, keepdim)


@rule(aten.logsumexp)
def logsumexp(op: OpContext, x: Value, dim: Any, keepdim: bool = False) -> Value:
    """The same."""
    return op.log_sum(x, dim, keepdim)


@rule(aten.var, aten.std)
def deviation(
    op: OpContext, x: Value, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None
) -> Value:
    """The same; some overloads have a correction where others have the bias flag."""
    # var(x, unbiased) has the flag in the place of dim
    return op.reduce(x, None if isinstance(dim, bool) else dim, keepdim)


@rule(aten.var_mean, aten.std_mean)
def deviation_and_mean(
    op: OpContext, x: Value, dim: Any = None, unbiased: Any = True, keepdim: bool = False, *, correction: Any = None
) -> list[Value]:
    """Deviation or variance, and the mean."""
    reduced = op.reduce(x, None if isinstance(dim, bool) else dim, keepdim)
    return [reduced, reduced]


@rule(aten.norm, aten.linalg_vector_norm, aten.linalg_norm)
def norm(op: OpContext, x: Value, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """The length of a vector."""
    return op.reduce(x, dim, keepdim)


@rule(aten.linalg_matrix_norm)
def matrix_norm(
    op: OpContext, x: Value, kind: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Value:
    """The size of a matrix."""
    return op.reduce(x, list(dim), keepdim)


@rule(aten.max, aten.min)
def extreme(op: OpContext, x: Value, other: Any = None, keepdim: bool = False) -> Any:
    """Largest of all, along an axis (with indices), or of two values."""
    if isinstance(other, Value):
        return op.either(x, other)
    reduced = op.reduce(x, other, keepdim)
    return reduced if other is None else [reduced, op.decide(x, other, keepdim)]


@rule(aten.median, aten.nanmedian)
def median(op: OpContext, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    """Median of all, or along an axis (with indices)."""
    reduced = op.reduce(x, dim, keepdim)
    return reduced if dim is None else [reduced, op.decide(x, dim, keepdim)]


@rule(aten.mode)
def mode(op: OpContext, x: Value, dim: int = -1, keepdim: bool = False) -> list[Value]:
    """A value and its index along an axis."""
    return [op.reduce(x, dim, keepdim), op.decide(x, dim, keepdim)]


@rule(aten.kthvalue)
def kthvalue(op: OpContext, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> list[Value]:
    """The k-th smallest value and its index along an axis."""
    return [op.reduce(x, dim, keepdim), op.decide(x, dim, keepdim)]


@rule(aten.aminmax)
def both_extremes(op: OpContext, x: Value, *, dim: int | None = None, keepdim: bool = False) -> list[Value]:
    """The smallest and the largest."""
    reduced = op.reduce(x, dim, keepdim)
    return [reduced, reduced]


@rule(aten.quantile.scalar, aten.nanquantile.scalar)
def quantile(op: OpContext, x: Value, q: float, dim: int | None = None, keepdim: bool = False, **options: Any) -> Value:
    """A quantile of all or along an axis."""
    return op.reduce(x, dim, keepdim)


@rule(aten.argmax, aten.argmin)
def decide(op: OpContext, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """The index of an extreme: over channels a decision with the label of the token, over tokens one without."""
    return op.decide(x, dim, keepdim)


@rule(aten.nonzero, aten.nonzero_static)
def places(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Places: decisions without label."""
    return op.weight()


@rule(aten.count_nonzero)
def count(op: OpContext, x: Value, dim: Any = None) -> Value:
    """A number without label, of some axes or of all."""
    axes = range(len(x.shape)) if dim is None else dim if isinstance(dim, Sequence) else [dim]
    return op.of_batch() if not x.is_constant and op.is_over_batch(x, list(axes)) else op.weight()


@rule(aten.histc, aten.dist)
def number(op: OpContext, *given: Any, **options: Any) -> Value:
    """Numbers without label, of all elements of one value or of two."""
    return op.number_of(*given)
