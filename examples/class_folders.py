"""Images in one folder for each class (`root/class/image`), checked before they are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader  # type: ignore[import-untyped]

from tlfx.errors import InputError, TlfxError, named

__all__ = ["ClassFolders", "check_filled", "class_folders", "find_split", "message_of", "numbered"]


def find_split(root: Path, names: Sequence[str]) -> Path | None:
    """The first folder of these names in ``root`` that has subfolders; None if there is none.

    Raises InputError if ``root`` does not exist.
    """
    if not root.is_dir():
        raise InputError(
            f"there is no folder {str(root)!r}; expected one with a folder for each class, or with splits of them "
            f"such as {names[0]}/"
        )
    return next((root / name for name in names if (root / name).is_dir() and subfolders(root / name)), None)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted; hidden ones do not count. Raises InputError if there are none."""
    names = subfolders(root)
    if not names:
        held = "images, but no class folders" if _holds_images(root) else "no class folders"
        raise InputError(f"{root} holds {held}; expected one folder for each class, such as {root}/n01440764/image.jpg")
    return names


def check_filled(root: Path, names: Iterable[str]) -> None:
    """Raise InputError unless each of these folders in ``root`` holds an image, in itself or in its subfolders."""
    if empty := [name for name in names if not any(map(_holds_images, _walk(root / name)))]:
        raise InputError(
            f"{root} holds class folders without images: {named(empty)}; add images (.jpg, .png, .webp, …) or remove "
            "the folders"
        )


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Labels of names in their order.

    >>> numbered(["ant", "bee"])
    {'ant': 0, 'bee': 1}
    """
    return {name: label for label, name in enumerate(names)}


def subfolders(root: Path) -> list[str]:
    """Names of the folders in ``root`` that are not hidden, sorted."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _walk(folder: Path) -> Iterable[Path]:
    return (Path(place) for place, _, _ in os.walk(folder, followlinks=True))  # as ImageFolder does


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in entries)


class ClassFolders(ImageFolder):  # type: ignore[misc]
    """The images of class folders. A sample is (``transform`` of the RGB image, label).

    ``labels`` maps names of folders to labels; by default folders are numbered in alphabetical order. Raises InputError
    for a root without class folders, for class folders without images, and later for an image that cannot be read.
    """

    def __init__(
        self,
        root: Path,
        labels: Mapping[str, int] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        names = class_folders(root)
        check_filled(root, names)
        self._labels = numbered(names) if labels is None else labels
        super().__init__(root, transform, loader=_read)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the folders, and their labels."""
        names = class_folders(Path(directory))
        return names, {name: self._labels[name] for name in names}


def _read(path: str) -> Image.Image:
    try:
        image: Image.Image = default_loader(path)
    except OSError as error:
        raise InputError(f"the image {path} cannot be read: {error}") from error
    return image


def message_of(error: TlfxError) -> str:
    """The message of an error, without the traceback that a DataLoader adds to an error of a worker process."""
    text = str(error)
    return text.strip().splitlines()[-1].partition("Error: ")[2] if "Original Traceback" in text else text
