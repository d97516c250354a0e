"""Indexing, sorting and scattering: by known indices a movement, by others a movement at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.provenance import Value
from tlfx.rule import rule
from tlfx.verbs import Op

aten = torch.ops.aten


@rule(aten.index)
def index(op: Op, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[indices]."""
    if all(op.is_known(i) for i in indices):
        return op.remap(x, lambda m: m[tuple(slice(None) if i is None else op.concrete(i) for i in indices)])
    return op.move_by_data(x, aten.index.Tensor, list(indices), out=op.shape)


@rule(aten.index_select)
def index_select(op: Op, x: Value, dim: int, chosen: Value) -> Value:
    """Whole slices along an axis."""
    if op.is_known(chosen):
        return op.move()
    return op.move_by_data(x, aten.index_select.default, dim, chosen, out=op.shape)


@rule(aten.gather)
def gather(op: Op, x: Value, dim: int, chosen: Value, **options: Any) -> Value:
    """x (batch, n, channels), chosen (batch, k, channels)."""
    if op.is_known(chosen):
        return op.move()
    return op.move_by_data(x, aten.gather.default, dim, chosen, out=op.shape)


@rule(aten.take_along_dim)
def take_along_dim(op: Op, x: Value, chosen: Value, dim: int | None = None) -> Value:
    """Likewise, the indices broadcast."""
    if op.is_known(chosen):
        return op.move()
    return op.move_by_data(x, aten.take_along_dim.default, chosen, dim, out=op.shape)


@rule(aten.topk)
def topk(op: Op, x: Value, k: int, dim: int = -1, *settings: Any) -> list[Value]:
    """The largest values, uniform over where they may come from, and their indices: decisions others are moved by."""
    return [op.reduce(x, dim, keepdim=True), op.weight()]


@rule(aten.sort)
def sort(op: Op, x: Value, *settings: Any, **options: Any) -> list[Value]:
    """Values in order, likewise, and their indices."""
    return [op.reduce(x, options.get("dim", settings[-2] if len(settings) > 1 else -1), keepdim=True), op.weight()]


@rule(aten.masked_fill)
def masked_fill(op: Op, x: Value, mask: Value, value: Any) -> Value:
    """Point-wise: where the mask holds, a number."""
    return op.pointwise(x)


@rule(aten.where)
def where(op: Op, condition: Value, a: Any = None, b: Any = None) -> Value:
    """An element-wise choice."""
    if all(not isinstance(v, Value) or v.is_constant for v in (a, b)):
        return op.pointwise(condition)
    if not (isinstance(a, Value) and isinstance(b, Value)):
        return op.pointwise(a if isinstance(a, Value) else b)
    return op.either(a, b)


@rule(aten.embedding)
def embedding(op: Op, table: Value, indices: Value, *settings: Any) -> Value:
    """A learned vector chosen by a value: the label of what chose it."""
    if not indices.is_content:
        return op.weight()
    return op.remap(indices, lambda m: m[..., None].expand(op.shape))


@rule(aten.one_hot)
def one_hot(op: Op, x: Value, classes: int = -1) -> Value:
    """A decision."""
    return op.weight()


@rule(aten.index_put)
def index_put(op: Op, x: Value, indices: Sequence[Value | None], source: Value, accumulate: bool = False) -> Value:
    """x[indices] = source at known indices."""
    at = tuple(slice(None) if i is None else op.concrete(i) for i in indices)
    return op.written(x, source, at, accumulate)
