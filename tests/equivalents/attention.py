"""Spellings of attention and of what is built from it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from equivalents.spelling import CHANNELS, TOKENS, Group, tokens

__all__ = ["GROUPS"]


def weights(s: Any, z: Tensor) -> Tensor:
    """Attention weights (batch, queries, keys)."""
    t = tokens(z)
    return (s.q(t) @ s.k(t).mT * 3).softmax(-1)


def chunked(s: Any, z: Tensor) -> Tensor:
    rows = weights(s, z).split(4, 1)
    return torch.cat([r @ s.v(tokens(z)) for r in rows], 1)


def fused(s: Any, z: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    query, key, value = (f(tokens(z))[:, None] for f in (s.q, s.k, s.v))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[:, 0]


ATTENTION = Group("attention").add(
    matmul=lambda s, z: weights(s, z) @ s.v(tokens(z)),
    bmm=lambda s, z: torch.bmm(weights(s, z), s.v(tokens(z))),
    einsum=lambda s, z: torch.einsum("bqk,bkc->bqc", weights(s, z), s.v(tokens(z))),
    transposed=lambda s, z: (s.v(tokens(z)).mT @ weights(s, z).mT).mT,
    fused=lambda s, z: fused(s, z, scale=3.0),
    chunks_of_queries=chunked,
)

MASK = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
MASK[2], MASK[5, :8] = False, False  # the third query sees no key


def scores(s: Any, z: Tensor) -> Tensor:
    return s.q(tokens(z)) @ s.k(tokens(z)).mT * CHANNELS**-0.5


def normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)


MASKED = Group("attention with a query that sees no key", {"mask": MASK}).add(
    fused=lambda s, z: fused(s, z, s.mask),
    mask_for_each_sample=lambda s, z: fused(s, z, s.mask.expand(len(z), 1, -1, -1)),
    float_mask=lambda s, z: fused(s, z, torch.zeros(TOKENS, TOKENS).masked_fill(~s.mask, float("-inf"))),
    float_mask_by_where=lambda s, z: fused(s, z, torch.where(s.mask, 0.0, float("-inf"))),
    softmax_without_nan=lambda s, z: (
        scores(s, z).masked_fill(~s.mask, float("-inf")).softmax(-1).nan_to_num(0) @ s.v(tokens(z))
    ),
    exponentials=lambda s, z: normalised(scores(s, z).exp() * s.mask) @ s.v(tokens(z)),
    filled_exponentials=lambda s, z: normalised(scores(s, z).exp().masked_fill(~s.mask, 0)) @ s.v(tokens(z)),
    softmax_filled=lambda s, z: normalised(scores(s, z).softmax(-1).masked_fill(~s.mask, 0)) @ s.v(tokens(z)),
)

GROUPS = [ATTENTION, MASKED]
