"""Eq. 7: labels are mixed by the matrix that mixes the tokens, Ŷ = A·Y; a matrix other than attention by Norm(|W|)."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed_labels(weights: Tensor, labels: Tensor) -> Tensor:
    """Ŷ (mixed tokens,), from a matrix (mixed tokens, tokens) and labels (tokens,). Rows are normalised (Table 10)."""
    mixed = []
    for row in weights:
        total = sum(abs(float(weight)) for weight in row)
        shares = [abs(float(weight)) / total * float(y) for weight, y in zip(row, labels, strict=True)]
        mixed.append(sum(shares))
    return torch.tensor(mixed, dtype=torch.float64)
