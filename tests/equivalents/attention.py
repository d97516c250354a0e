"""Spellings of attention and of what is built from it."""

from __future__ import annotations

from collections.abc import Callable
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


def without_first(how: Callable[[Any, Tensor], Tensor]) -> dict[str, Any]:
    """Attention to tokens the first of which are padding, in three spellings."""

    def values(s: Any, z: Tensor) -> Tensor:
        return how(s, tokens(z))

    return {
        "matmul": lambda s, z: weights(s, z) @ values(s, z),
        "einsum": lambda s, z: torch.einsum("bqk,bkc->bqc", weights(s, z), values(s, z)),
        "fused": lambda s, z: F.scaled_dot_product_attention(s.q(tokens(z)), s.k(tokens(z)), values(s, z), scale=3.0),
    }


FIRST = (torch.arange(TOKENS) < 3)[:, None]
PADDED = Group("attention to padding", {"first": FIRST, "mask": (~FIRST).float()})
for name, how in {
    "padded": lambda s, t: F.pad(t[:, 3:], (0, 0, 3, 0)),
    "masked": lambda s, t: t * s.mask,
    "filled": lambda s, t: t.masked_fill(s.first, 0.0),
    "chosen": lambda s, t: torch.where(s.first, 0.0, t),
}.items():
    PADDED.add(**{f"{spelling}_{name}": body for spelling, body in without_first(how).items()})

GROUPS = [ATTENTION, MASKED, PADDED]
