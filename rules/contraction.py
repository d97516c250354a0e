"""Linear layers, matrix products and einsum (Table 10: channel mixing, spatial mixing, aggregation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.provenance import Value
from tlfx.rule import rule
from tlfx.verbs import Op

aten = torch.ops.aten


@rule(aten.linear)
def linear(op: Op, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x (*, in), weight (out, in): Y ← Y, Norm(|W|)·Y or Norm(ΣY), by what the contracted axis holds."""
    if not weight.is_constant:
        letters = [str(i) for i in range(len(x.shape) - 1)]
        return op.multiply(x, [*letters, "i"], weight, ["o", "i"], [*letters, "o"])
    return op.contract(x, axis=-1, weight=weight)


@rule(aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot)
def matmul(op: Op, a: Value, b: Value) -> Value:
    """a (*, n, m), b (*, m, p): q·kᵀ is a weight, weight·v is spatial mixing."""
    return op.matmul(a, b)


@rule(aten.addmm, aten.baddbmm, aten.addbmm)
def addmm(op: Op, bias: Value, a: Value, b: Value, **scales: float) -> Value:
    """A matrix product plus a bias, which may be content itself."""
    return op.residual(op.matmul(a, b), bias)


@rule(aten.einsum)
def einsum(op: Op, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    """Any equation; of more than two operands, two after two."""
    return op.einsum(_explicit(equation.replace(" ", ""), operands), *operands)


@rule(aten.bilinear)
def bilinear(op: Op, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """a (*, i), b (*, j), weight (out, i, j): a product of two values over their channels."""
    lead = "abcdefgh"[: len(a.shape) - 1]
    return op.einsum(f"{lead}x,{lead}y,zxy->{lead}z", a, b, weight)


def _explicit(equation: str, operands: Sequence[Value]) -> str:
    """An equation with its output and its ellipses spelled out."""
    inputs, arrow, out = equation.partition("->")
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        out = "..." * ("..." in inputs) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spare = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in equation]
    terms = inputs.split(",")
    ranks = [len(x.shape) - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True)]
    longest = max((r for r, t in zip(ranks, terms, strict=True) if "..." in t), default=0)
    axes = "".join(spare[:longest])
    terms = [t.replace("...", axes[longest - r :]) for t, r in zip(terms, ranks, strict=True)]
    return ",".join(terms) + "->" + out.replace("...", axes)
