"""The runs of a table, small ones on digits, and those of the paper on ImageNet; both continue where they stopped."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

from compare import train
from experiment import Result, Run, finished
from methods import Method
from training import Recipe

from reproduction.printed import Printed, Row
from tlfx.errors import InputError

__all__ = [
    "DIGITS",
    "EXAMPLES",
    "IMAGENET",
    "MISSING",
    "accuracies",
    "best",
    "cells_of",
    "command",
    "finish",
    "launch",
    "measure_digits",
    "measure_imagenet",
    "spread",
]

EXAMPLES = Path(__file__).parents[1]
DIGITS = ("parameters", "images/s", "digits, %")
"""Heads of the figures of runs on digits."""
MISSING = "–"
"""The cell of a figure that was not measured."""
IMAGENET = {"Top-1(%)": "top1", "Top-5(%)": "top5"}
"""Heads of the figures of real runs, and their names in summary.csv."""


def measure_digits(table: Printed, recipe: Recipe, seeds: Sequence[int], folder: Path, jobs: int) -> list[list[str]]:
    """Train what is not finished, and return the cells of each row: printed names, measured figures, the paper's."""
    runs = {row: _runs(row, recipe, seeds) for row in table.rows}
    finish([run for each in runs.values() for run in each], folder, jobs)
    return [[*row.cells, *_measured(runs[row], folder), *row.paper] for row in table.rows]


def finish(runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Train the runs that are not finished."""
    left = [run for run in runs if finished(run, folder) is None]
    for run in train(list(dict.fromkeys(left)), folder, jobs) if left else ():
        print(f"{run} is done", file=sys.stderr)


def spread(percent: Sequence[float]) -> str:
    """The cell of figures of several runs: their mean, and the standard deviation of more than one.

    >>> spread([61.0]), spread([61.0, 62.0])
    ('61.0', '61.5 ± 0.7')
    """
    return f"{fmean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")


def _runs(row: Row, recipe: Recipe, seeds: Sequence[int]) -> list[Run]:
    if not row.digits:
        return []
    architecture, method = row.digits.split()
    return [Run(architecture, Method.parse(method), replace(recipe, seed=seed)) for seed in seeds]


def _measured(runs: Sequence[Run], folder: Path) -> list[str]:
    """Parameters, speed and accuracy of the runs of a row."""
    results = [(run, result) for run in runs if isinstance(result := finished(run, folder), Result)]
    if not results:
        return [MISSING] * len(DIGITS)
    speed = median(run.images / result.train_seconds for run, result in results)
    percent = [100 * result.accuracy for _, result in results]
    return [f"{results[0][0].parameters:,}", f"{speed:.0f}", spread(percent)]


def command(
    row: Row, data: Path, folder: Path, processes: int, weights: Path | None, extra: Sequence[str]
) -> list[str]:
    """The command that trains a row on ImageNet, or resumes it."""
    recipe, *flags = row.recipe.split()
    out = folder / _slug(row)
    parts = [
        *launch(processes),
        str(EXAMPLES / "train_imagenet.py"),
        "--config",
        str(EXAMPLES / "recipes" / f"{recipe}.yaml"),
    ]
    parts += [*flags, "--data-dir", str(data), "--output", str(out)]
    if "finetune" in recipe:
        if weights is None:
            raise InputError(f"{recipe} starts from published weights: pass --weights DIR with {recipe}.pth in it")
        parts += ["--initial-checkpoint", str(weights / f"{recipe}.pth")]
    return [*parts, *extra, *(["--resume"] if (out / "last.pth.tar").exists() else [])]


def launch(processes: int) -> list[str]:
    """The first words of a command that runs in a number of processes."""
    return [sys.executable] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]


def _slug(row: Row) -> str:
    """The folder of a row: its flags, which differ where runs do."""
    return row.recipe.replace(" --", "_").replace(" ", "_")


def measure_imagenet(
    table: Printed, data: Path, folder: Path, processes: int, weights: Path | None, extra: Sequence[str], show: bool
) -> list[list[str]]:
    """Train each row, or print its command if ``show``; rows as :func:`measure_digits`, with figures of accuracies."""
    for row in table.rows:
        if row.recipe:
            parts = command(row, data, folder, processes, weights, extra)
            print(shlex.join(parts), flush=True)
            if not show:
                subprocess.run(parts, check=True)
    names = [IMAGENET[head] for head in accuracies(table)]
    bests = {row: [best(folder / _slug(row), name) if row.recipe else MISSING for name in names] for row in table.rows}
    return [[*row.cells, *bests[row], *row.paper] for row in table.rows]


def accuracies(table: Printed) -> list[str]:
    """Heads of the figures of real runs: top-1 accuracy, and top-5 if the paper prints it."""
    return [head for head in IMAGENET if head in ("Top-1(%)", *table.figures)]


def best(folder: Path, metric: str = "top1") -> str:
    """A figure of the epoch with the best top-1 accuracy of a run, of its weights or of their moving average.

    MISSING without a finished epoch.
    """
    file = folder / "summary.csv"
    if not file.exists():
        return MISSING
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    accuracies = [
        (float(row[name]), float(row[name.removesuffix("top1") + metric]))
        for row in rows
        for name in row
        if name.endswith("top1") and row[name]
    ]
    return f"{max(accuracies)[1]:.1f}" if accuracies else MISSING


def cells_of(table: Printed, measured: Sequence[str]) -> list[str]:
    """Heads of the columns: printed names, measured figures, and those of the paper, marked as such."""
    return [*table.heads, *measured, *(f"paper: {name}" for name in table.figures)]
