"""Logs of a run: CSV tables, optional events for TensorBoard, and a progress bar."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tlfx.errors import InputError
from tlfx.system.files import write_atomically

__all__ = ["Logs", "Table", "show_progress"]


class Table:
    """A CSV file with rows in the order of a column. When a run is resumed, rows after its checkpoint are dropped.

    key: that column. last: its highest number that is kept.
    """

    def __init__(self, file: Path, key: str, last: int) -> None:
        self.file = file
        if file.exists():
            lines = file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may leave a part of the last line
            kept = [row for row in csv.DictReader(whole) if int(row[key]) <= last]
            write_atomically(file, lambda raw: raw.write(_lines(kept, header=True).encode()))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; the first one is preceded by a header."""
        header = not self.file.exists() or not self.file.stat().st_size
        with self.file.open("a", newline="") as text:
            text.write(_lines([row], header))


def _lines(rows: list[Any], header: bool) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Logs:
    """The tables `train.csv` (a row every few updates) and `summary.csv` (one per evaluation), and TensorBoard events.

    updates: those that are finished when the run begins or is resumed.
    """

    def __init__(self, options: Namespace, updates: int) -> None:
        folder = Path(options.output)
        self.train = Table(folder / "train.csv", "updates", updates)
        self.summary = Table(folder / "summary.csv", "updates", updates)
        self.events = _event_writer(folder, updates) if options.tensorboard else None

    def add(self, table: Table, row: Mapping[str, Any]) -> None:
        """Append a row to one of the tables, and write it as events."""
        table.add(row)
        if self.events is not None:
            for name, value in row.items():
                if name not in ("epoch", "updates"):
                    self.events.add_scalar(f"{table.file.stem}/{name}", value, row["updates"])
            self.events.flush()


def _event_writer(folder: Path, updates: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs TensorBoard: pip install 'tlfx[train]'") from error
    return SummaryWriter(str(folder / "events"), purge_step=updates + 1)


def show_progress(console: Console, shown: bool) -> Progress:
    """A progress bar for the updates of an epoch."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} updates"),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )
