"""Accuracy on a validation set, over all processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import accuracy
from torch import nn
from torch.utils.data import DataLoader

from imagenet.distributed import Processes

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    images: int,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, float]:
    """Mean loss, and top-1 and top-5 accuracy in percent, of a model in evaluation mode.

    The loader has the images of this process, numbers rank, rank + W, …; numbers from `images` on are not counted. Each
    image counts once for any number of processes. Images and weights may have any memory format.
    """
    model.eval()
    totals = processes.zeros(4)  # loss, top-1, top-5, count
    seen = 0
    for batch, labels in loader:
        batch, labels = batch.to(processes.device), labels.to(processes.device)
        with autocast():
            logits = model(batch).float()
        numbers = (torch.arange(seen, seen + len(batch)) * processes.world + processes.rank).to(processes.device)
        seen += len(batch)
        logits, labels = logits[numbers < images], labels[numbers < images]
        if len(labels):
            figures = [F.cross_entropy(logits, labels), *accuracy(logits, labels, topk=(1, 5))]
            totals += torch.stack([*figures, torch.ones_like(figures[0])]).to(totals) * len(labels)
    loss, top1, top5, count = processes.sum(totals).tolist()
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}
