"""Data sets by name, their transforms and loaders."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision import datasets  # type: ignore[import-untyped]

from imagenet.distributed import Processes
from imagenet.folders import check_same_classes, open_split
from imagenet.order import Batches, Reproducible
from tlfx.errors import InputError

__all__ = ["DATASETS", "Splits", "make_transforms", "open_splits", "train_loader", "val_loader"]


class Splits(NamedTuple):
    """The images for training and for validation, without transforms."""

    train: Any
    val: Any
    num_classes: int

    def transformed(self, train: Callable[[Any], Any], val: Callable[[Any], Any]) -> Splits:
        """The splits, with these transforms set."""
        for split, transform in ((self.train, train), (self.val, val)):
            for part in getattr(split, "datasets", [split]):
                part.transform = transform
        return self


def _folders(root: Path, train: str, val: str, download: bool) -> Splits:
    first, second = open_split(root, train), open_split(root, val)
    check_same_classes(first, second)
    return Splits(first, second, len(first.classes))


def _cifar(kind: Any, classes: int) -> Callable[..., Splits]:
    def make(root: Path, _: str, __: str, download: bool) -> Splits:
        first, second = (kind(str(root), train=train, download=download) for train in (True, False))
        return Splits(first, second, classes)

    return make


def _flowers(root: Path, train: str, val: str, download: bool) -> Splits:
    parts = [datasets.Flowers102(str(root), split, download=download) for split in ("train", "val", "test")]
    return Splits(ConcatDataset(parts[:2]), parts[2], 102)  # for transfer, train and val are joined


def _cars(root: Path, train: str, val: str, download: bool) -> Splits:
    return Splits(datasets.StanfordCars(str(root), "train"), datasets.StanfordCars(str(root), "test"), 196)


DATASETS: dict[str, Callable[..., Splits]] = {
    "": _folders,
    "torch/cifar10": _cifar(datasets.CIFAR10, 10),
    "torch/cifar100": _cifar(datasets.CIFAR100, 100),
    "torch/flowers102": _flowers,
    "torch/stanford_cars": _cars,
}


def open_splits(options: Namespace) -> Splits:
    """The data set that the options name. Raises InputError if it is missing or incomplete."""
    root = Path(options.data_dir)
    try:
        return DATASETS[options.dataset](root, options.train_split, options.val_split, options.dataset_download)
    except RuntimeError as error:  # torchvision raises it if files are missing or damaged
        advice = "" if options.dataset_download or "cars" in options.dataset else "; --dataset-download downloads it"
        raise InputError(f"{options.dataset} is incomplete in --data-dir {root}: {error}{advice}") from error


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The operation of timm for 0 bits too: a black image, as older versions of Pillow returned; newer ones raise."""
    return auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


auto_augment.NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeOriginal", "PosterizeIncreasing"), _posterize))


def make_transforms(options: Namespace, config: dict[str, Any]) -> tuple[Any, Any]:
    """The transforms of timm for training and for validation."""
    _check_policy(options.aa)
    common = {"input_size": config["input_size"], "mean": config["mean"], "std": config["std"]}
    train = create_transform(
        **common,
        is_training=True,
        no_aug=options.no_aug,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter,
        auto_augment=options.aa,
        interpolation=config["interpolation"] if options.no_aug else options.train_interpolation,
        re_prob=options.reprob,
        re_mode=options.remode,
        re_count=options.recount,
    )
    interpolation, crop = config["interpolation"], config["crop_pct"]
    return train, create_transform(**common, interpolation=interpolation, crop_pct=crop, crop_mode=config["crop_mode"])


def _check_policy(policy: str | None) -> None:
    """Raise InputError if timm does not know a policy of auto-augmentation."""
    if policy is None:
        return
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"--aa {policy}: timm does not know this policy ({error}); expected one such as rand-m9-mstd0.5-inc1"
        ) from error


def train_loader(splits: Splits, batches: Batches, options: Namespace, device: torch.device) -> DataLoader[Any]:
    """Batches of images (B, C, H, W) and labels int64 (B,), in the order of `batches`."""
    dataset = Reproducible(splits.train, options.seed)
    return DataLoader(dataset, batch_sampler=batches, **_loading(options, device))


def val_loader(splits: Splits, processes: Processes, options: Namespace) -> DataLoader[Any]:
    """The validation images of this process: numbers rank, rank + W, …

    All processes have the same number of images. Some may repeat the last image, which :func:`evaluate` does not count.
    """
    images, world = len(splits.val), processes.world
    share = [min(n * world + processes.rank, images - 1) for n in range(-(-images // world))]
    size = options.validation_batch_size or options.batch_size
    return DataLoader(Subset(splits.val, share), size, **_loading(options, processes.device))


def _loading(options: Namespace, device: torch.device) -> dict[str, Any]:
    return {
        "num_workers": options.workers,
        "persistent_workers": options.workers > 0,
        "pin_memory": device.type == "cuda",
    }
