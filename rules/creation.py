"""Operators that read the size or the type of a value, not its content."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.capture.stored import store
from tlfx.capture.tensor_calls import call_tensor
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(
    aten.new_empty,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.zeros_like,
    aten.ones_like,
    aten.empty_like,
    aten.full_like,
    aten.rand_like,
    aten.randn_like,
    aten.randint_like,
    aten.new_empty_strided,
)
def create(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """A constant in the shape of x."""
    return op.constant()


@rule(
    aten.bernoulli,
    aten.uniform,
    aten.normal,
    aten.zero,
    aten.fill,
    aten.random,
    aten.exponential,
    aten.uniform_,
    aten.normal_,
    aten.zero_,
    aten.fill_,
    aten.random_,
    aten.exponential_,
)
def overwrite(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """In-place overwriting with noise or a number."""
    return op.constant()


@rule(store)
def store_state(op: OpContext, stored: Any, number: int, name: str, values: Any) -> None:
    """State that the model's forward changes."""


@rule(call_tensor)
def hook(op: OpContext, calls: Any, number: int, x: Value, held: Any) -> None:
    """A gradient hook, or another call that does not change values."""


@rule(aten.sym_size)
def sym_size(op: OpContext, x: Value, dim: int | None = None) -> Any:
    """A size."""
    return list(x.shape) if dim is None else x.shape[dim]


@rule(aten.sym_numel)
def sym_numel(op: OpContext, x: Value) -> int:
    """The number of elements."""
    return int(torch.Size(x.shape).numel())
