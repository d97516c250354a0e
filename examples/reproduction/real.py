"""Real runs of models that were trained on ImageNet before: how they are started, and the names of their weights."""

from __future__ import annotations

import csv
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduction.runs import EXAMPLES, MISSING, launch

__all__ = ["MODELS", "RealRuns", "last", "stem"]

SIZES = {"T": "tiny", "S": "small", "B": "base"}
MODELS = {
    f"{family}-{letter}": f"{family.lower()}_{size}" for family in ("DeiT", "Swin") for letter, size in SIZES.items()
}
"""Models as the tables print them, and the stems of their files of weights."""


@dataclass(frozen=True)
class RealRuns:
    """Where real runs find data and weights, where they write, and how they are started.

    Attributes:
        data, weights, folder: folders of the data, of the files of weights, and of the runs.
        processes: of each run, started by torchrun.
        show: whether commands are only printed.
        extra: further flags of each run.
    """

    data: Path
    weights: Path
    folder: Path
    processes: int
    show: bool
    extra: Sequence[str]

    def file(self, row: str) -> Path:
        """The weights of a row."""
        return self.weights / f"{stem(row)}.pth"

    def start(self, script: str, *arguments: object) -> None:
        """Run an example, or print its command only."""
        parts = [*launch(self.processes), str(EXAMPLES / script), *map(str, arguments)]
        print(shlex.join(parts), flush=True)
        if not self.show:
            subprocess.run(parts, check=True)

    def train(self, script: str, out: Path, *arguments: object) -> None:
        """Train by an example into a folder, or resume the run that is there."""
        resumed = ["--resume"] if (out / "last.pth.tar").exists() else []
        self.start(script, *arguments, "--data-dir", self.data, "--output", out, *self.extra, *resumed)


def stem(row: str) -> str:
    """The file of weights of a row, without .pth.

    >>> stem("DeiT-S"), stem("Swin-T +TL-Align")
    ('deit_small', 'swin_tiny_aligned')
    """
    model, _, aligned = row.partition(" ")
    return MODELS[model] + ("_aligned" if aligned else "")


def last(folder: Path, names: Sequence[str]) -> list[str]:
    """Figures of the last evaluation of a run; MISSING before it."""
    file = folder / "summary.csv"
    if not file.exists():
        return [MISSING] * len(names)
    with file.open() as lines:
        *_, row = csv.DictReader(lines)
    return [f"{float(row[name]):.1f}" for name in names]
