"""Analyse many models, each in a separate process, and write one row for each to a CSV file.

A stopped sweep resumes: models in the file are skipped unless --fresh is given. Patterns match timm names (default:
all); patterns that begin with torchvision: match torchvision names.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output
from tlfx.errors import InputError
from tlfx.system.files import check_writable
from tlfx.zoo import models, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

__all__ = ["add_arguments", "parse_bytes", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx zoo``."""
    parser.add_argument("patterns", metavar="PATTERN", nargs="*", help="shell patterns, such as 'vit_*'")
    parser.add_argument("-o", "--output", metavar="CSV", type=Path, default=Path("zoo.csv"), help="default: zoo.csv")
    parser.add_argument("--smallest", action="store_true", help="only the smallest model of each family")
    parser.add_argument("--check", action="store_true", help="also measure what tlfx check does")
    parser.add_argument("--fresh", action="store_true", help="analyse models in the file again")
    parser.add_argument(
        "--jobs",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 2),
        help="number of parallel models; default: half the cores",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=600.0, help="time limit of each model; default: 600"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", default="8G", help="memory limit of each model; 0 for no limit; default: 8G"
    )
    arguments.add_input_size(parser)
    arguments.add_rules(parser)
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Run the sweep and print a summary; exit status 0 once every model has a row, even for failures."""
    from tlfx.zoo.pool import Task, sweep
    from tlfx.zoo.select import select

    if args.jobs < 1 or args.timeout <= 0:
        raise InputError(f"--jobs {args.jobs} and --timeout {args.timeout:g} must be positive")
    if args.input_size is not None:
        models.parse_size(args.input_size)
    check_writable(args.output, "--output")
    task = Task(args.timeout, parse_bytes(args.memory), args.check, args.input_size, tuple(args.rules))
    console = output.console(args, stderr=True)
    selected = select(args.patterns or ["*"])
    names = _smallest(selected, console) if args.smallest else list(selected)
    rows = table.read(args.output)
    todo = [n for n in names if args.fresh or not _is_done(rows.get(n), args.check)]
    rows = {n: row for n, row in rows.items() if n not in todo}
    table.write(args.output, rows.values())
    try:
        with _progress(console, "models", len(todo)) as advance:
            for row in sweep(todo, task, args.jobs):
                rows[row["model"]] = row | {"family": selected[row["model"]]}
                table.append(args.output, rows[row["model"]])
                advance(_line(row))
    finally:
        table.write(args.output, rows.values())
    _summarise(console, [rows[n] for n in names], set(selected.values()))
    output.wrote(args.output)
    return 0


def parse_bytes(text: str) -> int:
    """A number of bytes with an optional suffix K, M, G or T. Raises InputError.

    >>> parse_bytes("1.5G")
    1610612736
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise InputError(f"--memory {text!r}: expected a number of bytes such as 8G or 500M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def _is_done(row: table.Row | None, check: bool) -> bool:
    """Whether a row has all requested columns."""
    return row is not None and (not check or row["status"] != "ok" or bool(row[table.FIGURES[0]]))


def _smallest(selected: dict[str, str], console: Console) -> list[str]:
    from tlfx.zoo.select import families, smallest

    with _progress(console, "sizes", len(selected)) as advance:
        names = [smallest(family, advance) for family in families(selected).values()]
    return sorted(name for name in names if name is not None)


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar; yields a function that advances it and optionally prints a line above it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[Any] = [
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)

        def advance(line: str = "") -> None:
            if line:
                progress.console.print(line, markup=False, soft_wrap=True)
            progress.advance(task)

        yield advance


def _line(row: table.Row) -> str:
    """One line about a model that did not succeed, empty for one that did."""
    return "" if row["status"] == "ok" else f"{row['model']}: {row['status']}: {row.get('reason', '')}"


def _summarise(console: Console, rows: list[table.Row], families: set[str]) -> None:
    """Print the number of models by status, the reasons of failures, and the families without success."""
    ended = Counter(row["status"] for row in rows)
    console.print(f"{len(rows)} models: {', '.join(f'{n} {status}' for status, n in ended.most_common())}")
    for row in sorted(rows, key=lambda row: row["model"]):
        if row["status"] != "ok":
            console.print(f"  {_line(row)}", markup=False, soft_wrap=True)
    lost = sorted(families - {row["family"] for row in rows if row["status"] == "ok"})
    console.print(f"{len(families) - len(lost)} of {len(families)} families have a model that succeeded")
    if lost:
        console.print(f"  without: {', '.join(lost)}", markup=False)
