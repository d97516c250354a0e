"""Losses that a model computes: one number for the batch has no label, one for each element has the label of the
element."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(
    aten.mse_loss,
    aten.l1_loss,
    aten.smooth_l1_loss,
    aten.huber_loss,
    aten.binary_cross_entropy,
    aten.binary_cross_entropy_with_logits,
    aten.kl_div,
    aten.soft_margin_loss,
    aten.poisson_nll_loss,
)
def loss(op: OpContext, x: Value, goal: Value, *settings: Any, **options: Any) -> Value:
    """x and its target, element by element, or the sum or mean of all."""
    return op.numerator(x, goal) if op.shape == x.shape else op.number_of(x, goal)


@rule(aten.cross_entropy_loss, aten.nll_loss, aten.nll_loss2d, aten.nll_loss_nd)
def class_loss(op: OpContext, x: Value, goal: Value, *settings: Any, **options: Any) -> Value:
    """x (batch, classes, *size): a loss for each position, or the sum or mean of all."""
    return op.reduce(x, 1) if len(op.shape) == len(x.shape) - 1 and op.shape else op.number_of(x, goal)
