"""Figures of finished runs in one CSV file, which is committed: a run whose figures are known is not trained again."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from experiment import Result, Run, SettingsError
from methods import Method
from training import Recipe

from tlfx.system.files import write_atomically

__all__ = ["FIGURES", "add_figures", "read_figures"]

FIGURES = Path(__file__).parent / "results" / "accuracy.csv"
NOTE = "note"
"""The column of what is recorded instead of figures, such as experiment.UNCHANGED."""
COLUMNS = ("architecture", "method", *(f.name for kind in (Recipe, Result) for f in fields(kind)), NOTE, "torch")
T = TypeVar("T")


def read_figures(file: Path) -> dict[Run, Result | str]:
    """The figures of all runs in a file, or the note that is recorded instead; none if there is no file.

    Raises SettingsError for a line that holds no run.
    """
    results: dict[Run, Result | str] = {}
    for number, row in enumerate(_rows(file), 2):
        try:
            run = Run(row["architecture"], Method.parse(row["method"]), _read(Recipe, row))
            results[run] = row[NOTE] or _read(Result, row)
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"line {number} of {file} holds no run ({type(error).__name__}: {error}): restore the file, or pass "
                "another --figures"
            ) from None
    return results


def add_figures(file: Path, run: Run, outcome: Result | str) -> None:
    """Add a run to a file, atomically. The lines of other runs stay as they are."""
    figures = {NOTE: outcome} if isinstance(outcome, str) else asdict(outcome)
    new = {"architecture": run.architecture, "method": run.method, **asdict(run.recipe), **figures}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*_rows(file), {**new, "torch": torch.__version__}])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda raw: raw.write(text.getvalue().encode()))


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return []


def _read(kind: type[T], row: Mapping[str, str]) -> T:
    """A dataclass of numbers and texts; fields without a value have their defaults."""
    types: dict[str, Any] = get_type_hints(kind)
    return kind(**{name: read(row[name]) for name, read in types.items() if row.get(name)})
