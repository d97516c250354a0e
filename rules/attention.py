"""Fused attention, softmax and dropout (eq. 7, 9: weights after softmax and before dropout, averaged over heads)."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention)
def scaled_dot_product_attention(
    op: OpContext,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """query (*, heads, n, d), key and value (*, heads, m, d): Y ← softmax(q·kᵀ)·Y."""
    # labels do not need these two: they take the weights before dropout (eq. 9), and see groups by the shapes
    replaced = {"dropout": dropout_p, "grouped": enable_gqa}
    return op.attend(query, key, value, attn_mask, is_causal, scale, replaced)


@rule("flex_attention")
def flex_attention(op: OpContext, query: Value, key: Value, value: Value, *settings: Any) -> list[Value]:
    """query (batch, heads, n, d), key and value (batch, heads, m, d), with any score function and block mask."""
    # as nodes: the score function and the block mask are submodules, whose values here are None
    out = op.attend_by_itself(query, key, value, *op.node.args[3:])
    # further outputs, such as the log-sum-exp of each query, have no label
    return [out, *(op.weight(shape=shape) for shape in op.shapes[1:])]


@rule(aten.softmax, aten._softmax, contexts=True)
def softmax(op: OpContext, x: Value, dim: int, dtype: Any = None) -> Value:
    """Over tokens a mixing weight, over channels point-wise."""
    return op.softmax(x, dim)


@rule(aten._safe_softmax, aten.log_softmax, contexts=True)
def unnormalised_softmax(op: OpContext, x: Value, dim: int, dtype: Any = None) -> Value:
    """The same, of rows that may be zero, or whose logarithm is taken."""
    return op.softmax(x, dim, sums_to_one=False)


@rule(
    aten.dropout,
    aten.feature_dropout,
    aten.alpha_dropout,
    aten.feature_alpha_dropout,
    aten.native_dropout,
    contexts=True,
)
def dropout(op: OpContext, x: Value, p: float, train: bool) -> Value:
    """Point-wise; mixing weights are read before dropout."""
    return op.dropout(x)
