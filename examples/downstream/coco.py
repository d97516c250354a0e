"""Images with boxes and masks of objects, in the layout of COCO."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle  # type: ignore[import-untyped]
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from tlfx.errors import InputError, named

__all__ = ["Objects", "check_same_categories", "collate", "silence"]

Target = dict[str, Tensor]
"""`boxes` float (N, 4) as left, top, right, bottom; `labels` int64 (N,) from 1; `masks` uint8 (N, H, W)."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Objects:
    """The images of `SPLIT2017/` and the objects of `annotations/instances_SPLIT2017.json`.

    For training, images without objects are left out, as are objects of a crowd and of less than a pixel, and images
    are mirrored half of the time. Raises InputError for missing files and annotations that are not COCO's, and later
    for images and masks that cannot be read.
    """

    def __init__(self, root: Path, split: str, num_classes: int, training: bool) -> None:
        self.folder, self.file = root / split, root / "annotations" / f"instances_{split}.json"
        self.training = training
        self.coco = _read(self.file)
        self.categories: dict[int, str] = {c["id"]: c["name"] for c in self.coco.dataset["categories"]}
        self.labels = {category: label for label, category in enumerate(sorted(self.categories), 1)}
        if len(self.labels) != num_classes:
            raise InputError(f"{self.file} has {len(self.labels)} categories, but --num-classes is {num_classes}")
        self._check()
        ids: list[int] = sorted(self.coco.imgs)
        self.ids = [i for i in ids if self._objects(i)] if training else ids
        if not self.coco.anns or not self.ids:
            raise InputError(f"{self.file} has no objects")

    def _check(self) -> None:
        """Raise InputError for a missing image, and for an object that is not one of COCO's."""
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder}, which has the images of {self.file}")
        held = set(os.listdir(self.folder))
        if lacking := [i["file_name"] for i in self.coco.imgs.values() if i["file_name"] not in held]:
            raise InputError(f"{self.folder} lacks {named(lacking, most=3)}, which {self.file} names")
        for number, annotation in self.coco.anns.items():
            if fault := self._fault(annotation):
                raise InputError(f"{self.file}: annotation {number} {fault}")

    def _fault(self, annotation: dict[str, Any]) -> str:
        box, mask = annotation.get("bbox"), annotation.get("segmentation")
        if annotation.get("category_id") not in self.labels:
            return f"has category_id {annotation.get('category_id')}, which is not one of its categories"
        if annotation.get("image_id") not in self.coco.imgs:
            return f"has image_id {annotation.get('image_id')}, which is not one of its images"
        if not isinstance(box, list) or len(box) != 4:
            return f"has bbox {box}, expected [left, top, width, height]"
        if not isinstance(mask, (list, dict)) or (isinstance(mask, list) and any(len(p) < 6 for p in mask)):
            return "has no segmentation: expected polygons of three corners or more, or a run-length code"
        return "" if "area" in annotation else "has no area"

    def _objects(self, image: int) -> list[dict[str, Any]]:
        """The objects of an image to train on."""
        annotations = self.coco.imgToAnns[image]
        return [o for o in annotations if not o.get("iscrowd") and o["area"] > 0 and min(o["bbox"][2:]) >= 1]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        """An image float (3, H, W) in [0, 1] and its target, or for evaluation its id."""
        details = self.coco.imgs[self.ids[number]]
        image = _image(self.folder / details["file_name"], (details["width"], details["height"]))
        if not self.training:
            return image, self.ids[number]
        target = self._target(self._objects(self.ids[number]), *image.shape[1:])
        return _mirrored(image, target) if random.random() < 0.5 else (image, target)

    def _target(self, objects: list[dict[str, Any]], height: int, width: int) -> Target:
        left, top, wide, high = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).unbind(1)
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = torch.stack((left, top, left + wide, top + high), 1).clamp(min=0).minimum(limits)
        return {
            "boxes": boxes,
            "labels": torch.tensor([self.labels[o["category_id"]] for o in objects]),
            "masks": torch.from_numpy(np.stack([self._mask(o) for o in objects])),
        }

    def _mask(self, annotation: dict[str, Any]) -> np.ndarray[Any, Any]:
        try:
            decoded: np.ndarray[Any, Any] = rle.decode(self.coco.annToRLE(annotation))
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.file}: the segmentation of annotation {annotation['id']} is broken: {error}"
            ) from error
        return decoded


def _read(file: Path) -> Any:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; expected COCO's annotations") from error
    except ValueError as error:
        raise InputError(f"{file} is not a JSON file: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise InputError(f"{file} is not in the layout of COCO: expected lists {', '.join(lists)}")
    coco = COCO()
    coco.dataset = content
    try:
        with silence():
            coco.createIndex()
        for image in content["images"]:
            image["file_name"], image["width"], image["height"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is not in the layout of COCO: {error} is missing") from error
    return coco


def _image(file: Path, size: tuple[int, int]) -> Tensor:
    try:
        image = Image.open(file).convert("RGB")
    except OSError as error:
        raise InputError(f"the image {file} cannot be read: {error}") from error
    if image.size != size:
        raise InputError(f"the image {file} has {image.size} pixels, but its annotation says {size}")
    pixels: Tensor = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
    return pixels


def _mirrored(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    boxes = torch.stack((width - right, top, width - left, bottom), 1)
    return image.flip(2), {**target, "boxes": boxes, "masks": target["masks"].flip(2)}


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images have different sizes: a batch is two lists."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def check_same_categories(train: Objects, val: Objects) -> None:
    """Raise InputError if two splits have different categories."""
    if train.categories != val.categories:
        raise InputError(f"the categories of {train.file} and {val.file} differ, so that their labels do")
