"""Operators that read the size or the type of a value, not its content."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.capture.state.stored import store
from tlfx.capture.tensor_calls import call_tensor
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.new_zeros, aten.zeros_like, aten.new_empty, aten.empty_like, aten.new_empty_strided)
def zeros(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Zeros in the shape of x, or memory that is written to before it is read."""
    return op.constant(number=0)


@rule(aten.new_ones, aten.ones_like)
def ones(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Ones in the shape of x."""
    return op.constant(number=1)


@rule(aten.new_full, aten.full_like)
def full(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """A number in the shape of x."""
    return op.constant(number=op.number(settings[-1]))


@rule(aten.rand_like, aten.randn_like, aten.randint_like)
def noise(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Noise in the shape of x."""
    return op.constant()


@rule(
    aten.bernoulli.default,
    aten.bernoulli.Tensor,
    aten.normal.Tensor_float,
    aten.normal.float_Tensor,
    aten.normal.Tensor_Tensor,
    aten.poisson,
    aten.binomial,
)
def draw(op: OpContext, *given: Any, **options: Any) -> Value:
    """Random numbers, element by element, whose distribution has parameters that may be content."""
    # bernoulli.Tensor(x, p) takes the shape alone from x
    parameters = given[1:] if op.target is aten.bernoulli.Tensor else given
    values = [v for v in parameters if isinstance(v, Value) and not v.is_constant]
    if not values:
        return op.constant()
    return op.either(values[0], values[1]) if len(values) > 1 else op.pointwise(values[0])


@rule(aten.zero, aten.zero_)
def zero(op: OpContext, x: Value) -> Value:
    """In-place overwriting with zeros."""
    return op.constant(number=0)


@rule(aten.fill, aten.fill_)
def fill(op: OpContext, x: Value, value: Any) -> Value:
    """In-place overwriting with a number, or with the one element of a value."""
    if isinstance(value, Value) and not value.is_constant:
        return op.taken_from(value)
    return op.constant(number=op.number(value))


@rule(
    aten.bernoulli,
    aten.uniform,
    aten.normal,
    aten.random,
    aten.exponential,
    aten.uniform_,
    aten.normal_,
    aten.random_,
    aten.exponential_,
)
def overwrite(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Overwriting with noise."""
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
