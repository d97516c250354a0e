"""AP of boxes and of masks, by pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from imagenet.distributed import Processes
from pycocotools import mask as rle  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from downstream.coco import Objects, silence

__all__ = ["evaluate", "figures"]

KINDS = {"box": "bbox", "mask": "segm"}
COLUMNS = ("AP", "AP50", "AP75")
"""The first of the figures of COCOeval."""


@torch.no_grad()
def evaluate(model: nn.Module, data: Objects, processes: Processes, workers: int) -> dict[str, float]:
    """AP, AP50 and AP75 of boxes and masks in percent, over the images of all processes."""
    model.eval()
    share: Any = Subset(data, range(processes.rank, len(data), processes.world))  # type: ignore[arg-type]
    results: list[dict[str, Any]] = []
    for image, number in DataLoader(share, batch_size=None, num_workers=workers):
        (detected,) = model([image.to(processes.device)])
        results += _results(detected, int(number), {label: c for c, label in data.labels.items()})
    everything = [result for part in processes.gather(results) for result in part]
    return figures(data, sorted(everything, key=lambda result: int(result["image_id"])))


def _results(detected: dict[str, Tensor], image: int, categories: dict[int, int]) -> list[dict[str, Any]]:
    """The objects of an image in the format of COCO, with box and mask."""
    left, top, right, bottom = detected["boxes"].float().cpu().unbind(1)
    boxes = torch.stack((left, top, right - left, bottom - top), 1).tolist()
    masks = (detected["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    labels, scores = detected["labels"].tolist(), detected["scores"].tolist()
    return [
        {
            "image_id": image,
            "category_id": categories[label],
            "score": score,
            "bbox": box,
            "segmentation": rle.encode(np.asfortranarray(mask)),
        }
        for label, score, box, mask in zip(labels, scores, boxes, masks, strict=True)
    ]


def figures(data: Objects, results: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of detected objects; 0 if there are none."""
    figures = {}
    for name, kind in KINDS.items():
        given = [{k: v for k, v in r.items() if k != ("bbox" if kind == "segm" else "segmentation")} for r in results]
        stats = _stats(data, given, kind) if given else [0.0] * len(COLUMNS)
        figures.update({f"{column} {name}": 100 * float(s) for column, s in zip(COLUMNS, stats, strict=False)})
    return figures


def _stats(data: Objects, results: list[dict[str, Any]], kind: str) -> Any:
    with silence():
        evaluation = COCOeval(data.coco, data.coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats
