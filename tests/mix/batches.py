"""Batches for the tests of mixers."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = 7


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 8, height: int = 12, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = seeded(seed)
    images = torch.randn(count, 3, height, width, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def shaped(count: int, height: int, width: int) -> Tensor:
    """Images of no content, for masks that do not look at them."""
    return torch.empty(count, 1, height, width)


def numbered(count: int, height: int = 12, width: int = 8) -> tuple[Tensor, Tensor]:
    """Image i is i everywhere, and so is its label."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).repeat(1, 3, height, width), torch.arange(count)
