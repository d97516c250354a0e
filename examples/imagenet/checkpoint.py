"""Checkpoints that hold a whole run, written so that a kill at any time leaves the last good one."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from tlfx.errors import InputError
from tlfx.files import write_atomically

__all__ = ["BEST", "LAST", "NEWEST", "find", "read", "write"]

LAST, BEST = "last.pth.tar", "model_best.pth.tar"
NEWEST = "last"  # in place of a file: the last one of the run
NEEDED = frozenset(("arch", "state_dict", "optimizer", "progress", "settings"))


def write(content: dict[str, Any], folder: Path, best: bool) -> None:
    """Put a checkpoint in the place of the last one, and of the best one too. InputError if it cannot be written."""
    try:
        write_atomically(folder / LAST, lambda file: torch.save(content, file))
        if best:
            _link(folder / LAST, folder / BEST)
    except (OSError, RuntimeError) as error:  # torch's own, around that of the system
        raise InputError(f"no checkpoint can be written to {folder}: {error}; the last one there is whole") from error


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, or where the system cannot, a copy."""
    new = name.with_name(f"{name.name}.new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        write_atomically(name, lambda file: file.write(path.read_bytes()))
    else:
        os.replace(new, name)


def find(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from, None to begin. InputError if it is not there, or not of the run in `folder`.

    Also if nothing is to be resumed and the folder holds a run already.
    """
    last = folder / LAST
    held = [name for name in (LAST, "train.csv", "summary.csv") if (folder / name).exists()]
    if resume is None:
        if held:
            raise InputError(
                f"--output {folder} holds another run ({', '.join(held)}), which would be lost: go on with --resume, "
                "or give another folder"
            )
        return None
    file = last if resume == NEWEST else Path(resume)
    if not file.is_file():
        raise InputError(f"--resume: there is no checkpoint {file}")
    if held and file.resolve().parent != folder.resolve():
        raise InputError(
            f"--resume {file} is not of the run in --output {folder}, which would be lost: give {file.parent} or a new "
            "folder"
        )
    return file


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint. InputError if it is damaged, or not one of these."""
    try:
        with zipfile.ZipFile(file) as archive:  # torch writes checksums, and does not read them
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"--resume {file}: the checkpoint is damaged or no checkpoint ({_first_line(error)}); the other one of "
            f"{LAST} and {BEST} may be whole"
        ) from error
    lacking = NEEDED - set(content) if isinstance(content, dict) else NEEDED
    if lacking:
        raise InputError(
            f"--resume {file} holds no run to go on with, it lacks {', '.join(sorted(lacking))}: if these are weights, "
            "give them as --initial-checkpoint"
        )
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
