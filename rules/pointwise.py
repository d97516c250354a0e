"""Element-wise operators: activations, sums (residual connections, eq. 11), products and quotients."""

from __future__ import annotations

import operator
from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten

ACTIVATIONS = (
    aten.relu, aten.relu6, aten.gelu, aten.silu, aten.mish, aten.elu, aten.selu, aten.celu, aten.leaky_relu,
    aten.prelu, aten.rrelu, aten.rrelu_with_noise, aten.sigmoid, aten.tanh, aten.softplus, aten.softshrink,
    aten.hardshrink, aten.threshold, aten.hardtanh, aten.hardsigmoid, aten.hardswish, aten.log_sigmoid, aten.erf,
    aten.erfc, aten.exp, aten.exp2, aten.expm1, aten.log2, aten.log10, aten.log1p, aten.sqrt, aten.rsqrt,
    aten.square, aten.abs, aten.sign, aten.sgn, aten.reciprocal, aten.sin, aten.cos, aten.tan,
    aten.asin, aten.acos, aten.atan, aten.sinh, aten.cosh, aten.frac, aten.nan_to_num, aten.logit, aten.angle,
    aten.asinh, aten.acosh, aten.atanh, aten.sinc, aten.erfinv, aten.absolute, aten.deg2rad, aten.rad2deg, aten.arcsin,
    aten.arccos, aten.arctan, aten.special_expit, aten.signbit, aten.heaviside, aten.logical_not, aten.bitwise_not,
    aten.isnan, aten.isinf, aten.isfinite, aten.bucketize, aten.lgamma, aten.digamma,
    aten.mvlgamma, aten.i0, aten.special_gammaln, aten.special_i0, aten.special_i0e, aten.special_i1,
    aten.special_i1e, aten.special_ndtr, aten.special_ndtri, aten.special_log_ndtr, aten.special_entr,
    aten.special_erfcx,
)  # fmt: skip


@rule(*ACTIVATIONS, contexts=True)
def activation(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Y ← Y."""
    return op.pointwise(x)


@rule(aten.log)
def logarithm(op: OpContext, x: Value) -> Value:
    """Y ← Y."""
    return op.logarithm(x)


@rule(
    aten.ceil, aten.floor, aten.round, aten.trunc, aten.fix, aten.clamp, aten.clamp_min, aten.clamp_max, aten.clip,
)  # fmt: skip
def step(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Y ← Y, by a function that never falls."""
    return op.monotone(x)


@rule(aten.neg, aten.negative, contexts=True)
def negative(op: OpContext, x: Value) -> Value:
    """Y ← Y."""
    return op.linear(x, -1)


@rule(aten.polygamma, aten.special_polygamma)
def polygamma(op: OpContext, n: int, x: Value) -> Value:
    """Y ← Y; the order is the first argument."""
    return op.pointwise(x)


@rule(aten.add, contexts=True)
def add(op: OpContext, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    """Y ← Norm(Y + g(Y)) for two values with content."""
    both = isinstance(a, Value) and isinstance(b, Value)
    return op.residual(a, b, (1, alpha)) if both else op.linear(_value(a, b))


@rule(aten.sub, aten.subtract, contexts=True)
def sub(op: OpContext, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    """The same, or Y ← Y if a statistic is subtracted from what it is a statistic of."""
    # the sign counts for statistics: x - mean(x) is centred, x + mean(x) is a sum
    both = isinstance(a, Value) and isinstance(b, Value)
    return op.residual(a, b, (1, -alpha)) if both else op.linear(_value(a, b), 1 if isinstance(a, Value) else -1)


@rule(aten.rsub, contexts=True)
def rsub(op: OpContext, a: Any, b: Any, *, alpha: Any = 1) -> Value:
    """The same, b − alpha·a."""
    return sub(op, b, a, alpha=alpha)


@rule(aten.mul, aten.multiply, contexts=True)
def mul(op: OpContext, a: Any, b: Any) -> Value:
    """A factor that is broadcast does not change labels; those of two full values are averaged."""
    if isinstance(a, Value) and isinstance(b, Value):
        return op.product(a, b)
    return op.scaled(a, b) if isinstance(a, Value) else op.scaled(b, a)


@rule(aten.div, aten.divide, aten.true_divide, contexts=True)
def div(op: OpContext, a: Any, b: Any, *, rounding_mode: Any = None) -> Value:
    """The label of the numerator; by another full value with content, the average of both, as of a product."""
    if isinstance(a, Value) and isinstance(b, Value):
        return op.numerator(a, b) if rounding_mode is None else op.monotone(b if a.is_constant else a)
    if rounding_mode is not None or not isinstance(a, Value):
        return op.monotone(a) if isinstance(a, Value) else op.pointwise(b)
    # a quotient by zero has no finite scale
    return op.linear(a, 1 / b if b else None)


@rule(aten.floor_divide, aten.__rshift__, aten.__lshift__, aten.bitwise_right_shift, aten.bitwise_left_shift)
def quotient(op: OpContext, a: Any, b: Any) -> Value:
    """The same, of a function that is not linear."""
    divided = isinstance(a, Value) and not (isinstance(b, Value) and a.is_constant)
    return op.monotone(a) if divided else op.pointwise(b)


@rule(aten.remainder, aten.fmod)
def remainder(op: OpContext, a: Any, b: Any) -> Value:
    """The same."""
    divided = isinstance(a, Value) and not (isinstance(b, Value) and a.is_constant)
    # torch.remainder rounds the quotient down, torch.fmod towards zero
    floored = op.target.overloadpacket is not aten.fmod
    return op.remainder(a, b, floored) if divided else op.pointwise(b)


@rule(
    aten.pow, aten.float_power, aten.atan2, aten.arctan2, aten.xlogy, aten.copysign, aten.ldexp, aten.nextafter,
    aten.gcd, aten.lcm, aten.polar,
)  # fmt: skip
def power(op: OpContext, a: Any, b: Any) -> Value:
    """The label of the base, or of the exponent of a constant; the average of two full values with content."""
    return op.numerator(a, b) if isinstance(a, Value) and isinstance(b, Value) else op.pointwise(_value(a, b))


@rule(aten.maximum, aten.minimum, aten.fmax, aten.fmin, aten.logaddexp, aten.logaddexp2, aten.hypot)
def extreme(op: OpContext, a: Value, b: Value) -> Value:
    """The larger or smaller of two: the average of differing labels."""
    return op.either(a, b)


@rule(aten.complex)
def complex_of(op: OpContext, real: Value, imaginary: Value) -> Value:
    """Two parts of one number: the average of differing labels."""
    return op.residual(real, imaginary)


@rule(aten.searchsorted)
def searchsorted(op: OpContext, steps: Value, x: Any, *settings: Any, **options: Any) -> Value:
    """The interval that each element falls into: a decision with its label."""
    return op.pointwise(x) if isinstance(x, Value) and not x.is_constant else op.weight()


@rule(aten.addcmul, contexts=True)
def addcmul(op: OpContext, x: Value, a: Value, b: Value, *, value: Any = 1) -> Value:
    """x + a·b."""
    return op.residual(x, op.product(a, b), (1, value))


@rule(aten.addcdiv)
def addcdiv(op: OpContext, x: Value, a: Value, b: Value, *, value: Any = 1) -> Value:
    """x + a/b."""
    return op.residual(x, op.numerator(a, b), (1, value))


@rule(aten.lerp)
def lerp(op: OpContext, a: Value, b: Value, weight: Any) -> Value:
    """Between two values: a residual connection."""
    return op.interpolate(a, b, weight)


@rule(aten.glu)
def glu(op: OpContext, x: Value, dim: int = -1) -> Value:
    """One half of the channels gates the other."""
    gated, gate = op.halves(x, dim)
    return op.product(gated, gate)


@rule(
    aten.eq,
    aten.ne,
    aten.lt,
    aten.le,
    aten.gt,
    aten.ge,
    aten.isclose,
    aten.logical_and,
    aten.logical_or,
    aten.logical_xor,
    aten.bitwise_and,
    aten.bitwise_or,
    aten.bitwise_xor,
    aten.__and__,
    aten.__or__,
    aten.__xor__,
)
def compare(op: OpContext, a: Any, b: Any, *settings: Any) -> Value:
    """A decision about content, element by element, has its label; one about weights is a weight."""
    return op.either(a, b) if isinstance(a, Value) and isinstance(b, Value) else op.pointwise(_value(a, b))


@rule(operator.getitem, contexts=True)
def getitem(op: OpContext, values: Any, index: int) -> Any:
    """One of several outputs."""
    return op.output(values[index])


def _value(a: Any, b: Any) -> Value:
    """The operand that is a value; the other is a number."""
    return a if isinstance(a, Value) else b
