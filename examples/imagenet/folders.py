"""A split of a data set in folders: `root/split/class/image`, as ImageNet is kept."""

from __future__ import annotations

from pathlib import Path

from class_folders import ClassFolders, find_split

from tlfx.errors import InputError, named

__all__ = ["check_same_classes", "open_split"]

SYNONYMS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


def open_split(root: Path, split: str) -> ClassFolders:
    """The images of one split, such as "train" or "val", with their classes in alphabetical order.

    The folder of the split may have a synonym for its name. Raises InputError if it is missing, holds no class folder,
    or a class folder without images.
    """
    names = SYNONYMS.get(split, (split,))
    folder = find_split(root, names) or next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        held = sorted(entry.name for entry in root.iterdir())
        raise InputError(f"{root} has no folder {' or '.join(names)}; it holds {named(held) or 'nothing'}")
    return ClassFolders(folder)


def check_same_classes(train: ClassFolders, val: ClassFolders) -> None:
    """Raise InputError if two splits have different classes, so that their labels have different meanings."""
    missing, unknown = (sorted(set(a.classes) - set(b.classes)) for a, b in ((train, val), (val, train)))
    if missing or unknown:
        lacks = [f"lacks {named(missing)}"] if missing else []
        adds = [f"adds {named(unknown)}"] if unknown else []
        raise InputError(
            f"the classes of {train.root} and {val.root} differ, so that their labels have different meanings: the "
            f"second {' and '.join(lacks + adds)}"
        )
