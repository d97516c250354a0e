"""Eq. 9: TL-Align-S, labels mixed by the average of the attention matrices of all heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twins.eq_07 import mixed_labels


def tl_align_s(matrices: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Ŷ = 1/H Σᵢ Aᵢ·Y, (N,)."""
    total = torch.zeros(len(labels), dtype=torch.float64)
    for attention in matrices:
        total += mixed_labels(attention, labels)
    return total / len(matrices)
