"""Normalisation layers (Table 10: point-wise transformation, Y ← Y)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.layer_norm, aten.rms_norm, "aten::_fused_rms_norm")
def layer_norm(op: OpContext, x: Value, size: Sequence[int], *settings: Any, **options: Any) -> Value:
    """Statistics over the last axes, as many as ``size`` has; they do not change labels."""
    return op.normalise(x, range(-len(size), 0))


@rule(aten.native_layer_norm)
def native_layer_norm(op: OpContext, x: Value, size: Sequence[int], *settings: Any) -> list[Value]:
    """The same, with the statistics as further outputs."""
    return [op.normalise(x, range(-len(size), 0)), *(op.weight(shape=shape) for shape in op.shapes[1:])]


@rule(aten.instance_norm)
def instance_norm(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """x (batch, channels, *size): statistics over all axes but the first two."""
    return op.normalise(x, range(2, len(x.shape)))


@rule(aten.renorm)
def renorm(op: OpContext, x: Value, p: float, dim: int, maxnorm: float) -> Value:
    """Norms over all axes but one."""
    return op.normalise(x, [a for a in range(len(x.shape)) if a != dim % len(x.shape)])


@rule(aten.group_norm)
def group_norm(op: OpContext, x: Value, groups: int, *settings: Any, **options: Any) -> Value:
    """x (batch, channels, *size): statistics over all axes but the first, for groups of channels."""
    return op.normalise_groups(x, groups)


@rule(aten.native_group_norm)
def native_group_norm(
    op: OpContext, x: Value, weight: Any, bias: Any, batch: int, channels: int, size: int, groups: int, eps: float
) -> list[Value]:
    """The same, with the statistics as further outputs."""
    return [op.normalise_groups(x, groups), *(op.weight(shape=shape) for shape in op.shapes[1:])]


@rule(aten.batch_norm)
def batch_norm(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Statistics of the batch, the one exception: they scale every sample alike, and do not change labels."""
    return op.pointwise(x)


@rule(
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
)
def native_batch_norm(op: OpContext, x: Value, *settings: Any, **options: Any) -> list[Value]:
    """The same, with the statistics as further outputs."""
    return [op.pointwise(x), *(op.of_batch(shape) for shape in op.shapes[1:])]
