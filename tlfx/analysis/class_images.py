"""Batches of images from a folder with one folder for each class, for measurements of trained models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlfx.analysis.photos import fitted, normalised, open_photo
from tlfx.errors import InputError, named

__all__ = ["ClassImages"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ClassImages:
    """Images of ``root/class/image`` in random order, prepared for a model; iterates over (images, labels).

    Images are float32 (batch, 3, height, width): the central crop of the file, with the share ``crop_pct`` of its side
    from the configuration of a timm model, normalised as the model is. Labels are int64 (batch,), the place of the
    class in ``classes``. The last images are left out if they do not fill a batch.

    Attributes:
        root: the folder of the class folders.
        classes: names of all classes in the order of the logits; there need not be a folder for each.
        model: the model that the images are prepared for.
        size: (height, width) of the images.
        batch: images in a batch.
        count: images in all, chosen at random; all that there are if there are fewer.
        seed: of the choice and the order.

    Raises InputError, when it is built, if there is no such folder, a folder is not named after a class, a class folder
    holds no image, or there are fewer images than a batch; and while iterating for a file that is not an image.
    """

    root: Path
    classes: Sequence[str]
    model: nn.Module
    size: tuple[int, int]
    batch: int
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        folders = class_folders(self.root)
        if unknown := [name for name in folders if name not in self.classes]:
            raise InputError(f"{self.root} holds folders that are not classes: {named(unknown)}")
        if empty := [name for name in folders if not _images_in(self.root / name)]:
            raise InputError(f"{self.root} holds class folders without images: {named(empty)}")
        if len(self) < 1:
            raise InputError(f"{self.root} gives {len(self._files)} images, expected at least a batch of {self.batch}")

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._files) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self) * self.batch, self.batch):
            part = self._files[first : first + self.batch]
            images = torch.stack([self._prepared(file) for file, _ in part])
            yield normalised(images, self.model), torch.tensor([label for _, label in part])

    @cached_property
    def _files(self) -> list[tuple[Path, int]]:
        """The chosen files and their labels, in their order."""
        labels = {name: label for label, name in enumerate(self.classes)}
        folders = class_folders(self.root)
        files = [(file, labels[name]) for name in folders for file in _images_in(self.root / name)]
        return random.Random(self.seed).sample(files, min(self.count, len(files)))

    def _prepared(self, file: Path) -> Tensor:
        config: Any = getattr(self.model, "default_cfg", None)
        share = config.get("crop_pct") if isinstance(config, dict) else None
        height, width = self.size
        full = [round(n / (share or 1)) for n in self.size]
        top, left = (full[0] - height) // 2, (full[1] - width) // 2
        return fitted(open_photo(file), full)[:, top : top + height, left : left + width]


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in a folder, sorted; hidden ones do not count. Raises InputError if there are none."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []
    if not names:
        raise InputError(
            f"{str(root)!r} is not a folder of class folders; expected one folder for each class, such as "
            f"{root}/cat/1.jpg"
        )
    return names


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
