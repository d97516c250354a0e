"""The CSV file of a sweep: one row for each model, written as it comes and put in order at the end."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from tlfx.analysis.figures import INVARIANTS
from tlfx.operations import Operation

__all__ = ["COLUMNS", "FIGURES", "OPERATIONS", "Row", "append", "read", "write"]

Row = dict[str, str]

OPERATIONS = tuple(operation.value for operation in Operation)
FIGURES = tuple(f"check_{invariant.name}" for invariant in INVARIANTS)
"""The columns of the invariants, empty where they were not measured."""
COLUMNS = (
    "model", "family", "status", "image", "parameters", "nodes", *OPERATIONS, "capture_seconds", "analysis_seconds",
    *FIGURES, "reason",
)  # fmt: skip


def read(path: Path) -> dict[str, Row]:
    """The rows of a file by model, none if there is no file; a row that was cut off is left out."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values() and set(row) == set(COLUMNS)]
    return {row["model"]: row for row in rows}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows in the order of models, at once: whoever stops it leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["model"]))
    os.replace(new, path)


def append(path: Path, row: Row) -> None:
    """Add a row, on disk when this returns."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n").writerow(row)
