"""The digits of data.py as a data set of PIL pictures, and the command line of the examples for frameworks."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import torch
from data import Digits, load_digits
from PIL import Image
from torch.utils.data import Dataset
from training import SIZE

__all__ = ["MEAN", "STD", "Pictures", "command_line", "load_pictures"]

MEAN, STD = (0.3, 0.3, 0.3), (0.25, 0.25, 0.25)  # of the normalisation in data.py


class Pictures(Dataset[tuple[Any, int]]):
    """PIL pictures SIZE×SIZE with labels, each digit at a fixed position of a photo; `transform` as in torchvision."""

    def __init__(self, digits: Digits, transform: Callable[[Any], Any] | None = None) -> None:
        pictures = digits.compose(torch.arange(len(digits)), torch.Generator().manual_seed(0))
        pixels = pictures.mul(STD[0]).add(MEAN[0]).mul(255).round().clamp(0, 255)
        self.pixels = pixels.byte().permute(0, 2, 3, 1).numpy()
        self.labels = digits.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.fromarray(self.pixels[index])
        return (self.transform(picture) if self.transform else picture), self.labels[index]


def load_pictures(options: Namespace, transform: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
    """The `Pictures` for training and testing, as many as the options say; each framework has a type for them."""
    train, test = load_digits(options.train, options.test, size=SIZE)
    return Pictures(train, transform), Pictures(test, transform)


def command_line(description: str | None) -> ArgumentParser:
    """A parser with the flags that all examples for frameworks have."""
    parser = ArgumentParser(description=(description or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=8, help="passes over the digits (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="pictures in a step, an even number (default: %(default)s)")
    add("--train", type=int, default=4000, help="digits to train on (default: %(default)s)")
    add("--test", type=int, default=1000, help="digits to test on (default: %(default)s)")
    add("--lr", type=float, default=2e-3, help="highest learning rate (default: %(default)s)")
    return parser
