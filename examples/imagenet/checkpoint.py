"""Checkpoints of a run, written atomically: a kill at any time leaves the last complete checkpoint."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from tlfx.errors import InputError
from tlfx.system.files import write_atomically

__all__ = ["BEST", "LAST", "NEWEST", "find", "read", "write"]

LAST, BEST = "last.pth.tar", "model_best.pth.tar"
NEWEST = "last"  # stands for the last checkpoint of the run
NEEDED = frozenset(("arch", "state_dict", "optimizer", "progress", "settings"))


def write(content: dict[str, Any], folder: Path, best: bool) -> None:
    """Replace the last checkpoint, and with `best` also the best one. Raises InputError if it cannot be written."""
    try:
        write_atomically(folder / LAST, lambda file: torch.save(content, file))
        if best:
            _link(folder / LAST, folder / BEST)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for errors of the system
        raise InputError(
            f"cannot write a checkpoint to {folder}: {error}; the previous one there is complete"
        ) from error


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, or write a copy if the file system does not support hard links."""
    new = name.with_name(f"{name.name}.new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        write_atomically(name, lambda file: file.write(path.read_bytes()))
    else:
        os.replace(new, name)


def find(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to resume from, or None to start a run.

    Raises InputError if the checkpoint does not exist or is not of the run in `folder`, and if a new run is given the
    folder of another.
    """
    last = folder / LAST
    # a run that ended before its first checkpoint leaves train.csv alone: nothing that could be continued
    held = [name for name in (LAST, "summary.csv") if (folder / name).exists()]
    if resume is None:
        if held:
            raise InputError(
                f"--output {folder} holds another run ({', '.join(held)}), which would be lost: continue it with "
                "--resume, or pass another folder"
            )
        return None
    file = last if resume == NEWEST else Path(resume)
    if not file.is_file():
        raise InputError(f"--resume: there is no checkpoint {file}")
    if held and file.resolve().parent != folder.resolve():
        raise InputError(
            f"--resume {file} is not of the run in --output {folder}, which would be lost: pass {file.parent} or a new "
            "folder"
        )
    return file


def read(file: Path, flag: str = "--resume", weights_flag: str = "--initial-checkpoint") -> dict[str, Any]:
    """The content of a checkpoint. Raises InputError if it is damaged or is not a checkpoint of a run.

    flag: that of the file. weights_flag: that which takes a file of weights.
    """
    try:
        with zipfile.ZipFile(file) as archive:  # torch writes checksums but does not check them
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{flag} {file} is damaged or is not a checkpoint ({_first_line(error)}); the other one of {LAST} and "
            f"{BEST} may be complete"
        ) from error
    lacking = NEEDED - set(content) if isinstance(content, dict) else NEEDED
    if lacking:
        raise InputError(
            f"{flag} {file} is not a checkpoint of a run, it lacks {', '.join(sorted(lacking))}: if it has only "
            f"weights, pass it as {weights_flag}"
        )
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
