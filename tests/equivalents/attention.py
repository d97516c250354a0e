"""Spellings of attention and of what is built from it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, Group, tokens

__all__ = ["GROUPS"]


def weights(s: Any, z: Tensor) -> Tensor:
    """Attention weights (batch, queries, keys)."""
    t = tokens(z)
    return (s.q(t) @ s.k(t).mT * 3).softmax(-1)


def chunked(s: Any, z: Tensor) -> Tensor:
    rows = weights(s, z).split(4, 1)
    return torch.cat([r @ s.v(tokens(z)) for r in rows], 1)


ATTENTION = Group("attention").add(
    matmul=lambda s, z: weights(s, z) @ s.v(tokens(z)),
    bmm=lambda s, z: torch.bmm(weights(s, z), s.v(tokens(z))),
    einsum=lambda s, z: torch.einsum("bqk,bkc->bqc", weights(s, z), s.v(tokens(z))),
    transposed=lambda s, z: (s.v(tokens(z)).mT @ weights(s, z).mT).mT,
    fused=lambda s, z: F.scaled_dot_product_attention(*(f(tokens(z))[:, None] for f in (s.q, s.k, s.v)), scale=3.0)[
        :, 0
    ],
    chunks_of_queries=chunked,
)

POOLING = Group("attention pooling", {"score": nn.Linear(CHANNELS, 1)}).add(
    matmul=lambda s, z: ((s.score(tokens(z)) * 9).softmax(1).mT @ tokens(z))[:, 0],
    einsum=lambda s, z: torch.einsum("bnk,bnc->bc", (s.score(tokens(z)) * 9).softmax(1), tokens(z)),
)

GROUPS = [ATTENTION, POOLING]
