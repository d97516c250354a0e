"""Eq. 6: self-attention of one head, Ẑ = Softmax(Q·Kᵀ / √d)·V."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_matrix(query: Tensor, key: Tensor) -> Tensor:
    """A(Q, K), (N, N): a row for each query."""
    rows = []
    for q in query:
        scores = [math.exp(float(q @ k) / math.sqrt(len(q))) for k in key]
        rows.append([score / sum(scores) for score in scores])
    return torch.tensor(rows, dtype=torch.float64)


def self_attention(tokens: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> tuple[Tensor, Tensor]:
    """A (N, N) and Ẑ (N, d), from tokens Z (N, D) and weights (D, d)."""
    query, key, value = tokens @ w_q, tokens @ w_k, tokens @ w_v
    attention = attention_matrix(query, key)
    mixed = [sum(float(weight) * v for weight, v in zip(row, value, strict=True)) for row in attention]
    return attention, torch.stack([torch.as_tensor(z) for z in mixed])
