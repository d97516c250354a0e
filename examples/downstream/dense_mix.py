"""CutMix of images with label maps, and the loss of its logits: each pixel has the label of both images, by share.

Plain dense CutMix gives a pixel the label of the image that was there: its share is 0 or 1. The aligned share of an
output is that of the image whose content reaches it, so that a pixel near the border of the box has both labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from trainer import Mixing

from downstream.ade20k import IGNORED
from tlfx.mix import ShareTarget

__all__ = ["DenseMix", "dense_loss", "mix_label_maps"]


class DenseMix(NamedTuple):
    """A mixed batch: images (B, 3, H, W), the label maps int64 (B, H, W) of both images, and the target for a model."""

    images: Tensor
    first: Tensor
    second: Tensor
    target: ShareTarget


def mix_label_maps(mixer: Mixing, images: Tensor, labels: Tensor) -> DenseMix:
    """Mix a batch by a mixer of ``tlfx.mix`` that takes as many classes as there are images in a batch."""
    numbers = torch.arange(len(images), device=images.device)  # as labels of the images, they say which ones were mixed
    mixed, target = mixer(images, numbers)
    zero = torch.zeros_like(numbers)
    share = ShareTarget(first=zero, second=zero + 1, mask=target.mask, num_classes=2)
    return DenseMix(mixed, labels[target.first], labels[target.second], share)


def dense_loss(logits: Tensor, share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The mean cross-entropy of pixels, weighted by the share (B, H, W) of the first label and of the second.

    Pixels without a label do not count: their weight is left out of the mean.

    >>> logits, labels = torch.zeros(1, 4, 2, 2), torch.full((1, 2, 2), IGNORED)
    >>> dense_loss(logits, torch.full((1, 2, 2), 0.25), labels, labels * 0).exp()
    tensor(4.)
    """
    total = weight = logits.new_zeros(())
    for labels, part in ((first, share), (second, 1 - share)):
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        counted = part * (labels != IGNORED)
        total, weight = total + (part * loss).sum(), weight + counted.sum()
    return total / weight.clamp(min=1e-6)
