"""Eq. 4: Z⁰ = [z_cls; x₁·E; …; x_N·E] + E_pos."""

from __future__ import annotations

import torch
from torch import Tensor


def patch_tokens(image: Tensor, projector: Tensor, bias: Tensor) -> Tensor:
    """xᵢ·E, (N, d): each patch of an image (C, H, W), flattened, times the projector (d, C, p, p)."""
    size = projector.shape[-1]
    _, height, width = image.shape
    tokens = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            patch = image[:, top : top + size, left : left + size].flatten()
            tokens.append(torch.stack([patch @ row.flatten() for row in projector]) + bias)
    return torch.stack(tokens)


def with_class_token(tokens: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """Z⁰ (N + 1, d): the class token first, and each token plus its position embedding."""
    return torch.stack([token + place for token, place in zip([class_token, *tokens], positions, strict=True)])
