"""mIoU and mAcc of a model on whole images, at one scale or averaged over several and their mirror images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from imagenet.distributed import Processes
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from downstream.ade20k import IGNORED, LabelMaps, normalize, resize

__all__ = ["SCALES", "confusion", "evaluate", "figures"]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of the multi-scale evaluation, as in mmsegmentation; each also mirrored."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: LabelMaps,
    processes: Processes,
    side: int,
    scales: Sequence[float],
    flip: bool,
    workers: int,
) -> dict[str, float]:
    """mIoU, mAcc and aAcc in percent, over the images of all processes; labels have their own size.

    side: of the shorter side of images at scale 1.
    """
    model.eval()
    share: Any = Subset(data, range(processes.rank, len(data), processes.world))  # type: ignore[arg-type]
    counts = processes.zeros(data.num_classes**2)
    for image, labels in DataLoader(share, batch_size=None, num_workers=workers, collate_fn=_as_it_is):
        scores = [_scores(model, image, side * s, labels.shape, processes.device) for s in scales]
        if flip:
            mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            scores += [_scores(model, mirrored, side * s, labels.shape, processes.device).flip(-1) for s in scales]
        predicted = torch.stack(scores).mean(0).argmax(0)
        counts += confusion(predicted, labels.to(predicted.device), data.num_classes).flatten()
    return figures(processes.sum(counts).view(data.num_classes, -1))


def _as_it_is(sample: Any) -> Any:
    return sample


def _scores(model: nn.Module, image: Image.Image, side: float, size: torch.Size, device: torch.device) -> Tensor:
    """Probabilities (classes, H, W) at the size of the labels."""
    logits = model(normalize(resize(image, side))[None].to(device))[0].float()
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False).softmax(1)[0]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The number of pixels of each label (row) predicted to be of each class (column); ignored ones left out.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2)
    tensor([[1, 1],
            [0, 0]])
    """
    kept = labels != IGNORED
    return torch.bincount(labels[kept] * classes + predicted[kept], minlength=classes**2).view(classes, classes)


def figures(counts: Tensor) -> dict[str, float]:
    """Means in percent over the classes that occur, of a matrix (label, predicted).

    >>> {name: round(figure, 1) for name, figure in figures(torch.tensor([[3.0, 1.0], [0.0, 4.0]])).items()}
    {'mIoU': 77.5, 'mAcc': 87.5, 'aAcc': 87.5}
    """
    right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou, accuracy = right / (labelled + predicted - right), right / labelled  # NaN for classes that do not occur
    return {
        "mIoU": 100 * iou.nanmean().item(),
        "mAcc": 100 * accuracy.nanmean().item(),
        "aAcc": 100 * (right.sum() / labelled.sum()).item(),
    }
