"""A split of a data set in folders: `root/split/class/image`, as ImageNet is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

from imagenet.errors import RunError

__all__ = ["check_same_classes", "open_split"]

SYNONYMS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


def open_split(root: Path, split: str, transform: Callable[[Any], Any] | None = None) -> ImageFolder:
    """The images of one split, such as "train" or "val", with their classes in alphabetical order.

    RunError if the folder is missing, holds no class, or a class without images.
    """
    folder = _find(root, split)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise RunError(f"{folder} holds no classes: expected one folder for each, as {folder}/n01440764/image.jpg")
    dataset = ImageFolder(str(folder), transform, allow_empty=True)
    filled = set(dataset.targets)
    empty = [name for name in classes if dataset.class_to_idx[name] not in filled]
    if empty:
        raise RunError(
            f"{folder} holds no images of {_some(empty)}: add some (.jpg, .png, .webp, …) or remove the folders, "
            "since numbers of classes count them"
        )
    return dataset


def check_same_classes(train: ImageFolder, val: ImageFolder) -> None:
    """RunError if the classes of two splits differ, since then their numbers do not mean the same."""
    missing, unknown = (sorted(set(a.classes) - set(b.classes)) for a, b in ((train, val), (val, train)))
    if missing or unknown:
        lacks = [f"lacks {_some(missing)}"] if missing else []
        adds = [f"adds {_some(unknown)}"] if unknown else []
        raise RunError(
            f"the classes of {train.root} and {val.root} differ, so that their numbers mean different things: the "
            f"second {' and '.join(lacks + adds)}"
        )


def _find(root: Path, split: str) -> Path:
    """The folder of a split, also under another usual name."""
    if not root.is_dir():
        raise RunError(f"there is no folder {root}; --data-dir names the folder that holds the splits")
    names = SYNONYMS.get(split, (split,))
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is None:
        held = sorted(entry.name for entry in root.iterdir())
        raise RunError(f"{root} has no folder {' or '.join(names)}; it holds {_some(held) if held else 'nothing'}")
    return found


def _some(names: list[str], most: int = 5) -> str:
    """The first few of many names."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
