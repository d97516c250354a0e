"""Eq. 5: the initial label of each token, as the share of the first image."""

from __future__ import annotations

import torch
from torch import Tensor


def patch_labels(mask: Tensor, size: int) -> Tensor:
    """Labels (N,): the ratio of the first image within each patch of a mask (H, W)."""
    height, width = mask.shape
    labels = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            pixels = [float(mask[y, x]) for y in range(top, top + size) for x in range(left, left + size)]
            labels.append(sum(pixels) / len(pixels))
    return torch.tensor(labels)


def class_label(mask: Tensor) -> float:
    """λ, the label of the class token."""
    return float(sum(mask.flatten().tolist()) / mask.numel())


def label_vector(share: float, first: int, second: int, classes: int) -> Tensor:
    """The label embedding of a token: λ for the class of the first image, 1 − λ for that of the second."""
    label = torch.zeros(classes)
    label[first] += share
    label[second] += 1 - share
    return label
