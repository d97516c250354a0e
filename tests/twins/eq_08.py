"""Eq. 8: multi-head self-attention, Ẑ = [SA₁(Z); …; SA_H(Z)]·w_h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twins.eq_06 import self_attention

Head = tuple[Tensor, Tensor, Tensor]
"""W_Q, W_K and W_V of a head."""


def multi_head(tokens: Tensor, heads: Sequence[Head], w_h: Tensor) -> tuple[list[Tensor], Tensor]:
    """The attention matrices A₁ … A_H, and Ẑ (N, d)."""
    matrices, mixed = [], []
    for weights in heads:
        attention, z = self_attention(tokens, *weights)
        matrices.append(attention)
        mixed.append(z)
    return matrices, torch.cat(mixed, dim=1) @ w_h
