"""Normalisation layers (Table 10: point-wise transformation, Y ← Y)."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(
    aten.layer_norm,
    aten.batch_norm,
    aten.group_norm,
    aten.instance_norm,
    aten.rms_norm,
    "aten::_fused_rms_norm",
)
def normalise(op: OpContext, x: Value, *settings: Any, **options: Any) -> Value:
    """Statistics do not change labels."""
    return op.pointwise(x)


@rule(
    aten.native_layer_norm,
    aten.native_batch_norm,
    aten.native_group_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
)
def normalise_with_statistics(op: OpContext, x: Value, *settings: Any, **options: Any) -> list[Value]:
    """The same, with the statistics as further outputs."""
    return [op.pointwise(x), *(op.weight(shape=shape) for shape in op.shapes[1:])]
