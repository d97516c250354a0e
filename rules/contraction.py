"""Linear layers, matrix products and einsum (Table 10: channel mixing, spatial mixing, aggregation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.errors import ProvenanceError
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.linear, contexts=True)
def linear(op: OpContext, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x (*, in), weight (out, in): Y ← Y, Norm(|W|)·Y or Norm(ΣY), by the content of the contracted axis."""
    if not weight.is_constant:
        subscripts = [str(i) for i in range(len(x.shape) - 1)]
        mixed = op.multiply(x, [*subscripts, "i"], weight, ["o", "i"], [*subscripts, "o"])
        return mixed if bias is None else op.residual(mixed, bias)
    return op.contract(x, axis=-1, weight=weight, bias=bias)


@rule(aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot, contexts=True)
def matmul(op: OpContext, a: Value, b: Value) -> Value:
    """a (*, n, m), b (*, m, p): q·kᵀ is a weight, weight·v is spatial mixing."""
    return op.matmul(a, b)


@rule(aten.addmm, aten.baddbmm, aten.addbmm, contexts=True)
def addmm(op: OpContext, bias: Value, a: Value, b: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """A matrix product plus a bias, which may be content itself."""
    return op.residual(op.matmul(a, b), bias, (alpha, beta))


@rule(aten.einsum, contexts=True)
def einsum(op: OpContext, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    """Any equation; more than two operands are contracted one after another."""
    return op.einsum(equation, *operands)


@rule(aten.bilinear, contexts=True)
def bilinear(op: OpContext, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """a (*, i), b (*, j), weight (out, i, j): a product of two values over their channels."""
    lead = [str(i) for i in range(len(a.shape) - 1)]
    mixed = op.contract_terms([(a, (*lead, "x")), (b, (*lead, "y")), (weight, ("z", "x", "y"))], (*lead, "z"))
    return mixed if bias is None else op.residual(mixed, bias)


@rule(aten.tensordot, contexts=True)
def tensordot(op: OpContext, a: Value, b: Value, dims_a: Sequence[int], dims_b: Sequence[int]) -> Value:
    """Some axes of one contracted with as many of the other; the others are kept in order."""
    gone_a, gone_b = ([d % len(v.shape) for d in dims] for v, dims in ((a, dims_a), (b, dims_b)))
    of_a = [f"a{i}" for i in range(len(a.shape))]
    # a contracted axis of b has the subscript of the axis of a that it meets
    of_b = [of_a[gone_a[gone_b.index(i)]] if i in gone_b else f"b{i}" for i in range(len(b.shape))]
    kept = [c for i, c in enumerate(of_a) if i not in gone_a] + [c for i, c in enumerate(of_b) if i not in gone_b]
    return op.multiply(a, of_a, b, of_b, kept)


@rule(aten.inner, contexts=True)
def inner(op: OpContext, a: Value, b: Value) -> Value:
    """The last axes contracted."""
    if not (a.shape and b.shape):
        return op.product(a, b)
    return tensordot(op, a, b, [-1], [-1])


@rule(aten.outer, aten.ger, contexts=True)
def outer(op: OpContext, a: Value, b: Value) -> Value:
    """a (n), b (m) → (n, m)."""
    return op.multiply(a, ["n"], b, ["m"], ["n", "m"])


@rule(aten.linalg_multi_dot, aten.chain_matmul, contexts=True)
def chain(op: OpContext, matrices: Sequence[Value]) -> Value:
    """Matrices (a, b), (b, c), (c, d), … → (a, d); the first and last may be vectors."""
    subscripts: list[tuple[str, ...]] = [(f"axis{i}", f"axis{i + 1}") for i in range(len(matrices))]
    # a vector has one axis only: the second of its pair in front, the first at the end
    subscripts[0] = subscripts[0][-len(matrices[0].shape) :]
    subscripts[-1] = subscripts[-1][: len(matrices[-1].shape)]
    out = (*subscripts[0][:-1], *subscripts[-1][1:])
    return op.contract_terms(list(zip(matrices, subscripts, strict=True)), out)


@rule(aten.kron)
def kron(op: OpContext, a: Value, b: Value) -> Value:
    """A copy of b for each element of a, times it."""
    # kron of ids and ones repeats the ids as kron repeats the elements
    one, other = torch.ones(a.shape, dtype=torch.int64), torch.ones(b.shape, dtype=torch.int64)
    if b.is_constant:
        return op.pointwise(op.remap(a, lambda m: torch.kron(m, other)))
    if a.is_constant:
        return op.pointwise(op.remap(b, lambda m: torch.kron(one, m)))
    return op.product(op.remap(a, lambda m: torch.kron(m, other)), op.remap(b, lambda m: torch.kron(one, m)))


@rule(aten.linalg_cross, aten.cross)
def cross(op: OpContext, a: Value, b: Value, dim: int | None = None) -> Value:
    """Vectors of three along an axis: a product of the two. Raises ProvenanceError for torch.cross without an axis."""
    if dim is None and op.target is aten.cross.default:
        raise ProvenanceError("torch.cross takes the first axis of length 3, which may be that of the batch: pass dim")
    return op.product(*(op.spread(v, [-1 if dim is None else dim]) if v.is_content else v for v in (a, b)))


@rule(aten.linalg_matrix_power, aten.matrix_power, aten.linalg_inv, aten.inverse, aten.linalg_pinv, aten.matrix_exp)
def matrix_function(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Of a mixing weight a mixing weight; of other values uniform over the matrix."""
    return op.spread(x, [-2, -1]) if x.is_content else op.pointwise(x)


@rule(aten.linalg_solve, aten.linalg_solve_triangular)
def solve(op: OpContext, a: Value, b: Value, **options: Any) -> Value:
    """a (*, n, n), b (*, n, m): every row of the solution depends on all rows of b."""
    return op.spread(b, [-2]) if b.is_content else op.weight()
