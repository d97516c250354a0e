"""The CSV file of a sweep: one row for each model, appended as it finishes and sorted at the end."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from tlfx.analysis.figures import INVARIANTS
from tlfx.errors import InputError
from tlfx.operations import Operation
from tlfx.system.files import write_atomically

__all__ = ["COLUMNS", "FIGURES", "OPERATIONS", "Row", "append", "read", "write"]

Row = dict[str, str]

OPERATIONS = tuple(operation.value for operation in Operation)
FIGURES = (*(f"check_{invariant.name}" for invariant in INVARIANTS), "check_extra", "check_missing")
"""The columns of the invariants and of the support of labels; empty if they were not measured."""
COLUMNS = (
    "model", "family", "status", "image", "parameters", "nodes", *OPERATIONS, "capture_seconds", "analysis_seconds",
    *FIGURES, "reason",
)  # fmt: skip


def read(path: Path) -> dict[str, Row]:
    """The rows of a file by model, empty without a file; a truncated row is omitted.

    Raises InputError for a file that has other columns.
    """
    if not path.is_file() or not path.stat().st_size:  # a device may never end
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        columns = next(csv.reader(file), [])
        if "model" not in columns:
            raise InputError(f"{path} is not a table of models, and tlfx zoo would replace it: choose another file")
        file.seek(0)
        rows = [row for row in csv.DictReader(file) if None not in row.values() and set(row) == set(COLUMNS)]
    return {row["model"]: row for row in rows}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows atomically, sorted by model."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["model"]))
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def append(path: Path, row: Row) -> None:
    """Append a row; the file is closed when this returns."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n").writerow(row)
