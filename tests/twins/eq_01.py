"""Eq. 1: CutMix, X̃ = M ⊙ X₁ + (1 − M) ⊙ X₂ and ỹ = λ·y₁ + (1 − λ)·y₂."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed_image(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """X̃ (C, H, W), pixel by pixel: each belongs to one of the images, as the mask (H, W) says."""
    mixed = torch.empty_like(first)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            source = first if mask[row, column] == 1 else second
            mixed[:, row, column] = source[:, row, column]
    return mixed


def box_ratio(width: int, height: int, image: tuple[int, int]) -> float:
    """r_w·r_h / (W·H), the proportion of the pixels of the cropped region; ``image`` is (H, W)."""
    return width * height / (image[0] * image[1])


def mixed_label(first: int, second: int, ratio: float, classes: int) -> Tensor:
    """ỹ (classes,)."""
    label = torch.zeros(classes)
    label[first] += ratio
    label[second] += 1 - ratio
    return label
