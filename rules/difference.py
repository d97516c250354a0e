"""Differences and integrals along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx.errors import ProvenanceError
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.diff)
def diff(
    op: OpContext, x: Value, n: int = 1, dim: int = -1, prepend: Value | None = None, append: Value | None = None
) -> Value:
    """Neighbours along an axis, n times: a residual connection, Y ← Norm(Y + g(Y))."""
    parts = [v for v in (prepend, x, append) if v is not None]
    if len(parts) > 1:
        x = op.step(_resized(x, dim, sum(v.shape[dim] for v in parts))).join(parts, dim)
    for _ in range(n):
        shape = _resized(x, dim, x.shape[dim] - 1)
        later, earlier = (op.remap(x, _part(dim, start, shape[dim])) for start in (1, 0))
        x = op.step(shape).residual(later, earlier, (1, -1))
    return op.pointwise(x)


@rule(aten.gradient)
def gradient(op: OpContext, x: Value, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> list[Value]:
    """The neighbours on both sides along each given axis: a residual connection."""
    if edge_order != 1:
        raise ProvenanceError(
            f"gradient with edge_order={edge_order} reads three elements at each end, for which there is no rule: use "
            "edge_order=1, or write the difference with slices"
        )
    dims = range(len(x.shape)) if dim is None else dim if isinstance(dim, Sequence) else [dim]
    # at an end, torch subtracts the end itself from its neighbour
    return [op.residual(op.remap(x, _shifted(d, 1)), op.remap(x, _shifted(d, -1)), (1, -1)) for d in dims]


@rule(aten.trapezoid, aten.trapz)
def trapezoid(op: OpContext, y: Value, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Value:
    """An integral is a sum."""
    return op.reduce(y, dim)


@rule(aten.cumulative_trapezoid)
def cumulative_trapezoid(op: OpContext, y: Value, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Value:
    """Every position depends on those up to it, and on the next."""
    scanned = op.step(y.shape).scan(y, dim)
    # position i integrates up to y[i + 1]
    return op.remap(scanned, _part(dim, 1, y.shape[dim] - 1))


def _resized(x: Value, dim: int, length: int) -> list[int]:
    shape = list(x.shape)
    shape[dim] = length
    return shape


def _part(dim: int, start: int, length: int) -> Callable[[Tensor], Tensor]:
    """A part of a map along an axis."""
    return lambda m: m.narrow(dim, start, length)


def _shifted(dim: int, by: int) -> Callable[[Tensor], Tensor]:
    """A map moved along an axis, its ends kept."""

    def shift(m: Tensor) -> Tensor:
        return m.index_select(dim, (torch.arange(m.shape[dim]) + by).clamp(0, m.shape[dim] - 1))

    return shift
