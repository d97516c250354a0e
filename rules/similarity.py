"""Similarities and distances: of the same tokens they have their label, of different tokens they are weights (eq.
7)."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.linalg_vecdot)
def vecdot(op: OpContext, a: Value, b: Value, *, dim: int = -1) -> Value:
    """a and b, broadcast to one another, multiplied and summed along an axis."""
    rank = max(len(a.shape), len(b.shape))
    subscripts = [str(i) for i in range(rank)]
    out = [c for i, c in enumerate(subscripts) if i != dim % rank]
    return op.multiply(a, subscripts[rank - len(a.shape) :], b, subscripts[rank - len(b.shape) :], out)


@rule(aten.cosine_similarity)
def cosine_similarity(op: OpContext, a: Value, b: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    """The same, of normalised vectors."""
    return vecdot(op, a, b, dim=dim)


@rule(aten.cdist)
def cdist(op: OpContext, a: Value, b: Value, *settings: Any) -> Value:
    """a (*, n, d), b (*, m, d): every token of one with every token of the other."""
    rank = len(op.shape)
    lead = [f"lead{i}" for i in range(rank - 2)]
    of_a, of_b = ([*lead[rank - len(v.shape) :], c, "d"] for v, c in ((a, "n"), (b, "m")))
    return op.multiply(a, of_a, b, of_b, [*lead, "n", "m"])


@rule(aten.pairwise_distance)
def pairwise_distance(op: OpContext, a: Value, b: Value, p: Any = 2, eps: float = 1e-6, keepdim: bool = False) -> Value:
    """The length of a difference, which is a residual connection."""
    difference = op.step(torch.broadcast_shapes(a.shape, b.shape)).residual(a, b, (1, -1))
    return op.reduce(difference, -1, keepdim)


@rule(aten.isin)
def isin(op: OpContext, x: Any, others: Any, **options: Any) -> Value:
    """Element-wise; among elements that depend on the image, a decision by all of them."""
    fixed = not isinstance(others, Value) or others.is_constant
    return op.pointwise(x) if fixed else op.number_of(x, others)
