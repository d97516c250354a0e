"""Images with label maps, in the folders of ADE20K, and their augmentation for training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from tlfx.errors import InputError, named

__all__ = ["IGNORED", "MEAN", "STD", "LabelMaps", "augment", "normalize", "resize"]

IGNORED = 255
"""The label of pixels that have none."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LONG = 4
"""How many times longer than the shorter side the longer one may get when an image is resized (2048 × 512)."""


class LabelMaps:
    """The pairs of `images/SPLIT/NAME.jpg` and `annotations/SPLIT/NAME.png`: images, and labels int64 (H, W).

    Labels are 1 to `num_classes`, and 0 for other things, in files; the data set has them as 0 to num_classes − 1, and
    :data:`IGNORED` for 0 and 255. Raises InputError for missing folders and files, and later for files that cannot be
    read, other sizes, and other labels.
    """

    def __init__(self, root: Path, split: str, num_classes: int, size: int | None = None) -> None:
        images, maps = root / "images" / split, root / "annotations" / split
        for folder in (images, maps):
            if not folder.is_dir():
                raise InputError(
                    f"there is no folder {folder}; expected images/{split} and annotations/{split} in {root}"
                )
        self.pairs = _pairs(images, maps)
        self.num_classes, self.size = num_classes, size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Any, Tensor]:
        """An RGB image and its labels; with `size`, a normalized and augmented crop (3, size, size)."""
        image, labels = self._read(*self.pairs[number])
        if self.size is None:
            return image, labels
        return augment(image, labels, self.size)

    def _read(self, image_file: Path, map_file: Path) -> tuple[Image.Image, Tensor]:
        image, raw = _open(image_file).convert("RGB"), _open(map_file)
        if raw.mode not in ("L", "P"):
            raise InputError(
                f"the annotation {map_file} has mode {raw.mode}, expected one label a pixel (8 bits, L or P)"
            )
        if raw.size != image.size:
            raise InputError(f"{map_file} has {raw.size} pixels, but its image {image_file} has {image.size}")
        values = torch.from_numpy(np.array(raw)).long()
        labels = torch.where((values == 0) | (values == 255), IGNORED, values - 1)
        highest = int(labels.masked_fill(labels == IGNORED, -1).max()) + 1
        if highest > self.num_classes:
            raise InputError(
                f"the annotation {map_file} has label {highest}, expected 0 to {self.num_classes}: 0 for none, and "
                f"--num-classes {self.num_classes}"
            )
        return image, labels


def _pairs(images: Path, maps: Path) -> list[tuple[Path, Path]]:
    images_of = {file.stem: file for file in images.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png")}
    labelled = {file.stem: file for file in maps.glob("*.png")}
    if not images_of:
        raise InputError(f"{images} holds no images (.jpg, .png)")
    if lacking := sorted(images_of.keys() - labelled.keys()):
        raise InputError(f"{maps} lacks the annotations of {named(lacking, most=3)}: a .png file for each image")
    return [(images_of[stem], labelled[stem]) for stem in sorted(images_of)]


def _open(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except OSError as error:
        raise InputError(f"{file} cannot be read as an image: {error}") from error
    return image


def resize(image: Image.Image, side: float) -> Image.Image:
    """An image whose shorter side is ``side``, or whose longer one is four times as long, if that is smaller."""
    scale = min(side / min(image.size), LONG * side / max(image.size))
    width, height = (max(round(length * scale), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def normalize(image: Image.Image) -> Tensor:
    """Float (3, H, W), normalized."""
    pixels: Tensor = F.normalize(F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), MEAN, STD)
    return pixels


def augment(image: Image.Image, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """mmsegmentation's training pipeline: resize by 0.5 to 2, crop, flip, distort colours, normalize, pad."""
    image = resize(image, size * random.uniform(0.5, 2.0))
    labels = F.resize(labels[None], list(image.size[::-1]), v2.InterpolationMode.NEAREST_EXACT)[0]
    top, left = _crop(labels, size)
    pixels = F.pil_to_tensor(image)[:, top : top + size, left : left + size]
    labels = labels[top : top + size, left : left + size]
    if random.random() < 0.5:
        pixels, labels = pixels.flip(-1), labels.flip(-1)
    pixels = F.normalize(F.to_dtype(_distort(pixels), torch.float32, scale=True), MEAN, STD)
    below, right = size - labels.shape[0], size - labels.shape[1]
    return F.pad(pixels, [0, 0, right, below]), F.pad(labels[None], [0, 0, right, below], fill=IGNORED)[0]


def _distort(pixels: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of uint8 (3, H, W), each changed half of the time, by the strengths of
    mmsegmentation."""
    if random.random() < 0.5:
        pixels = _rounded(pixels + random.uniform(-32, 32))
    contrast_first, contrast = random.random() < 0.5, random.uniform(0.5, 1.5) if random.random() < 0.5 else 1.0
    if contrast_first:
        pixels = _rounded(pixels * contrast)
    if random.random() < 0.5:
        pixels = F.adjust_saturation(pixels, random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        pixels = F.adjust_hue(pixels, random.uniform(-0.05, 0.05))
    return pixels if contrast_first else _rounded(pixels * contrast)


def _rounded(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _crop(labels: Tensor, size: int) -> tuple[int, int]:
    """Top and left of a crop, up to ten times until no class has more than 75 % of the labelled pixels."""
    height, width = labels.shape
    for _ in range(10):
        top, left = random.randint(0, max(height - size, 0)), random.randint(0, max(width - size, 0))
        crop = labels[top : top + size, left : left + size]
        counts = torch.bincount(crop[crop != IGNORED].flatten())
        if (counts > 0).sum() > 1 and counts.max() < 0.75 * counts.sum():
            break
    return top, left
