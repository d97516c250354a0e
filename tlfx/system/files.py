"""Atomic file writes: readers see the old file or the complete new one, never a part."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from tlfx.errors import InputError

__all__ = ["check_writable", "write_atomically"]


def check_writable(path: str | Path, option: str) -> None:
    """Raise InputError if a file cannot be written, before the work whose result it is to hold.

    Args:
        path: the file; an existing pipe or device is accepted.
        option: the command-line option that messages name.
    """
    file = Path(path)
    folder = file.parent
    if not folder.is_dir():
        kind = "is not a directory" if folder.exists() else "does not exist; create it first"
        raise InputError(f"{option} {str(path)!r} cannot be written: {str(folder)!r} {kind}")
    if file.is_dir():
        raise InputError(f"{option} {str(path)!r} cannot be written: it is a directory; add the name of a file")
    if not os.access(file if file.exists() and not file.is_file() else folder, os.W_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: no permission to write in {str(folder)!r}")


def write_atomically(path: str | Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, flush it to the disk, and rename it to ``path``.

    If ``fill`` or the disk fails, or the process is killed, the previous file stays as it was. A replaced file keeps
    its permissions, a symbolic link keeps pointing at the file that is replaced. Pipes and devices (``/dev/stdout``)
    cannot be replaced and are written directly.

    Args:
        path: the file to write.
        fill: called with a binary file object; writes the content to it.

    Raises OSError, with the name of the file, if it cannot be written, and whatever else ``fill`` raises.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "report.txt"
    >>> write_atomically(file, lambda raw: raw.write(b"done"))
    >>> file.read_text()
    'done'
    """
    try:
        _write(Path(path), fill)
    except OSError as error:  # which has no name, or that of the temporary file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _write(target: Path, fill: Callable[[IO[bytes]], object]) -> None:
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            fill(file)
        return
    target = target.resolve()  # os.replace would replace a symbolic link itself
    new = target.with_name(f"{target.name}.new")
    try:
        with new.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):  # there is no previous file
            shutil.copymode(target, new)
        os.replace(new, target)
    except BaseException:
        with suppress(OSError):  # the first error is the one to show
            new.unlink()
        raise
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the rename to the disk, on systems that let a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
