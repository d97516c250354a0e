"""Images in a folder for each class, as ImageNet and the sets made from it come, and the labels of these classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader  # type: ignore[import-untyped]

from tlfx.errors import InputError

__all__ = ["DATASETS", "ClassFolders", "Classes", "check", "class_folders", "classes_of", "find_root", "named"]

DATASETS = ("folder", "imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-c")
SPLITS = ("val", "validation")
WNIDS = "WordNet ids, such as n01440764"


@dataclass(frozen=True)
class Classes:
    """Labels of the folders, by name, for a model of so many ``logits``.

    Only the ``columns`` of the logits take part, in the order of the labels, or all. ``expected`` tells in messages
    how folders should be named.
    """

    labels: Mapping[str, int]
    logits: int
    expected: str
    columns: tuple[int, ...] | None = None


def classes_of(dataset: str, root: Path, class_map: Path | None = None) -> Classes:
    """The classes of a dataset: those of ImageNet as timm lists them; for "folder" the names themselves, sorted.

    ``class_map`` is a file of the names of all classes, one a line, in the order of the logits, for "folder" alone.
    Raises InputError if it names a class twice.
    """
    if dataset == "folder":
        names = class_folders(root) if class_map is None else _lines(class_map)
        return Classes(_numbered(names), len(names), f"one of the {len(names)} classes of {class_map or root}")
    wnids: list[str] = ImageNetInfo().label_names()
    count = len(wnids)
    if dataset == "imagenet-v2":
        return Classes({str(label): label for label in range(count)}, count, f"class indices, 0 to {count - 1}")
    if dataset in ("imagenet-a", "imagenet-r"):
        part = _subset(dataset)
        columns = tuple(_numbered(wnids)[wnid] for wnid in part)
        return Classes(_numbered(part), count, f"{WNIDS}, of the {len(part)} classes of {dataset}", columns)
    return Classes(_numbered(wnids), count, f"{WNIDS}, of ImageNet's {count} classes")


def _subset(dataset: str) -> list[str]:
    """The WordNet ids of ImageNet-A or -R, which timm ships as a file."""
    file = files("timm.data") / "_info" / f"{dataset.replace('-', '_')}_synsets.txt"
    return file.read_text().split()


def _lines(file: Path) -> list[str]:
    try:
        names = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-map {file} cannot be read: {error}") from error
    if not names or len(set(names)) < len(names) or "" in names:
        raise InputError(f"--class-map {file}: expected the name of another class in each line")
    return names


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: label for label, name in enumerate(names)}


def find_root(root: Path) -> Path:
    """The folder that holds the class folders: ``root`` itself, or its validation split. Raises InputError."""
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}; expected one that holds a folder for each class")
    splits = (root / split for split in SPLITS)
    return next((split for split in splits if split.is_dir() and _subfolders(split)), root)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted. Raises InputError if there are none."""
    names = _subfolders(root)
    if not names:
        found = "images that lie in no folder" if _holds_images(root) else "no folders"
        raise InputError(f"{root} holds {found}; expected a folder for each class, with its images")
    return names


def check(root: Path, classes: Classes) -> list[str]:
    """The folders in ``root``. Raises InputError unless each is that of a class and holds images."""
    names = class_folders(root)
    if unknown := [name for name in names if name not in classes.labels]:
        raise InputError(
            f"{root} holds folders of no known class: {named(unknown)}; "
            f"expected {classes.expected}. Another --dataset or --data-dir may be meant"
        )
    if empty := [name for name in names if not _holds_images(root / name)]:
        raise InputError(f"{root} holds class folders without images: {named(empty)}; fill or remove them")
    return names


def named(names: Sequence[str], most: int = 5) -> str:
    """Names for a message, the first few of many.

    >>> named(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _subfolders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in entries)


class ClassFolders(ImageFolder):  # type: ignore[misc]
    """The images of class folders with the labels of ``classes``, which are checked first.

    Samples are what ``transform`` makes of an RGB image, and its label. Raises InputError for folders of unknown
    classes or without images, and where an image cannot be read.
    """

    def __init__(self, root: Path, classes: Classes, transform: Callable[[Image.Image], Tensor] | None = None) -> None:
        check(root, classes)
        self._labels = classes.labels
        super().__init__(root, transform, loader=_read)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the folders there are, and their labels."""
        names = class_folders(Path(directory))
        return names, {name: self._labels[name] for name in names}


def _read(path: str) -> Image.Image:
    try:
        image: Image.Image = default_loader(path)
    except OSError as error:
        raise InputError(f"the image {path} cannot be read: {error}") from error
    return image
