"""Class folders of ImageNet and of the data sets derived from it, and the labels of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from class_folders import check_filled, class_folders, find_split, numbered
from timm.data.imagenet_info import ImageNetInfo

from tlfx.errors import InputError, named

__all__ = ["DATASETS", "Classes", "check", "classes_of", "find_root"]

DATASETS = ("folder", "imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-c")
SPLITS = ("val", "validation")
WNIDS = "WordNet ids, such as n01440764"


@dataclass(frozen=True)
class Classes:
    """Labels by name of the class folder, for a model with this number of ``logits``.

    ``columns`` are the logits of the labels in their order, None for all. ``expected`` describes the names of folders,
    for messages.
    """

    labels: Mapping[str, int]
    logits: int
    expected: str
    columns: tuple[int, ...] | None = None


def classes_of(dataset: str, root: Path, class_map: Path | None = None) -> Classes:
    """The classes of a dataset: those of ImageNet as listed by timm; for "folder" the names of the folders, sorted.

    ``class_map``, for "folder" only, is a file with the names of all classes in the order of the logits, one per line.
    Raises InputError if it names a class twice.
    """
    if dataset == "folder":
        names = class_folders(root) if class_map is None else _lines(class_map)
        return Classes(numbered(names), len(names), f"one of the {len(names)} classes of {class_map or root}")
    wnids: list[str] = ImageNetInfo().label_names()
    count = len(wnids)
    if dataset == "imagenet-v2":
        return Classes({str(label): label for label in range(count)}, count, f"class indices, 0 to {count - 1}")
    if dataset in ("imagenet-a", "imagenet-r"):
        part = _subset(dataset)
        columns = tuple(numbered(wnids)[wnid] for wnid in part)
        return Classes(numbered(part), count, f"{WNIDS}, of the {len(part)} classes of {dataset}", columns)
    return Classes(numbered(wnids), count, f"{WNIDS}, of ImageNet's {count} classes")


def _subset(dataset: str) -> list[str]:
    """The WordNet ids of ImageNet-A or -R, from a file of timm."""
    file = files("timm.data") / "_info" / f"{dataset.replace('-', '_')}_synsets.txt"
    return file.read_text().split()


def _lines(file: Path) -> list[str]:
    try:
        names = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-map {file} cannot be read: {error}") from error
    if not names or len(set(names)) < len(names) or "" in names:
        raise InputError(f"--class-map {file}: expected the name of a different class in each line")
    return names


def find_root(root: Path) -> Path:
    """The folder of the class folders: the validation split of ``root`` if it has one, else ``root``.

    Raises InputError if it does not exist.
    """
    return find_split(root, SPLITS) or root


def check(root: Path, classes: Classes) -> list[str]:
    """The class folders in ``root``. Raises InputError unless each is that of a class and holds images."""
    names = class_folders(root)
    if unknown := [name for name in names if name not in classes.labels]:
        raise InputError(
            f"{root} holds folders that are not classes: {named(unknown)}; expected {classes.expected}. "
            "Check --dataset and --data-dir"
        )
    check_filled(root, names)
    return names
