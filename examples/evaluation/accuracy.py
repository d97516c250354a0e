"""Top-1 and top-5 accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.classifier import Classifier

__all__ = ["Score", "measure", "pixels"]

MOST = 5


@dataclass(frozen=True)
class Score:
    """Accuracies in percent, and the number of images; ``k`` is 5, or the number of classes if that is smaller."""

    images: int
    top1: float
    topk: float
    k: int

    @property
    def error(self) -> float:
        """Share of the images that are classified incorrectly."""
        return 1.0 - self.top1 / 100.0


@torch.inference_mode()
def measure(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, amp: bool) -> Score:
    """Accuracies over batches of images uint8 (B, C, H, W) and labels int64 (B,), under autocast if ``amp``."""
    images, first, among, k = 0, 0, 0, MOST
    for batch, labels in batches:
        with torch.autocast(device.type, enabled=amp):
            logits = classifier(pixels(batch, device))
        k = min(MOST, logits.shape[1])
        hits = logits.topk(k).indices == labels.to(device).unsqueeze(1)  # (B, k)
        images += len(labels)
        first += int(hits[:, 0].sum())
        among += int(hits.sum())
    return Score(images, 100.0 * first / images, 100.0 * among / images, k)


def pixels(images: Tensor, device: torch.device) -> Tensor:
    """Images uint8 as float32 in [0, 1] on a device."""
    return images.to(device, non_blocking=True).float() / 255
