"""A small data set in folders, and a small model, for the tests of the training script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ["--model", "vit_tiny_patch16_224", "--img-size", "32"]
SMALL += ["--model-kwargs", "patch_size=8", "embed_dim=32", "depth=2", "num_heads=2"]
SMALL += ["--device", "cpu", "--workers", "0"]
CLASSES = ("ant", "bee", "cat", "dog")


def write_folders(root: Path, train: int, val: int = 4, size: int = 40) -> Path:
    """`root` with train/ and val/: so many pictures of each class: the colour of the class with noise."""
    for split, count in (("train", train), ("val", val)):
        for number, name in enumerate(CLASSES):
            write_pictures(root / split / name, count, number, size)
    return root


def write_pictures(folder: Path, count: int, colour: int, size: int = 40) -> None:
    """Pictures of one colour with noise; others in each folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([len(folder.parent.name), colour])
    for number in range(count):
        pixels = rng.integers(0, 128, (size, size, 3))
        pixels[..., colour % 3] += 64 + 16 * colour
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
