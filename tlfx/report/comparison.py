"""Several reports side by side: what differs, class by class."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from tlfx.operations import Operation
from tlfx.report.data import ModelReport
from tlfx.report.stages import read_from
from tlfx.report.style import COLORS, WORDS, giga

__all__ = ["comparison"]


def comparison(names: Sequence[str], reports: Sequence[ModelReport]) -> Table:
    """A table of operators and share of FLOPs by class for several models, and of what the labels are read from.

    Args:
        names: the heads of the columns.
        reports: a report for each name.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> reports = [inspect(nn.Conv2d(3, 8, 4, 4)), inspect(nn.Conv2d(3, 8, 1))]
    >>> [column.header for column in comparison(["patches", "pixels"], reports).columns]
    ['', 'patches', 'pixels']
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold")
    for title, cells in _totals(reports):
        table.add_row(title, *_marked(cells))
    table.add_section()
    for place, operation in enumerate(Operation):
        rows = [report.summary[place] for report in reports]
        cells = [f"{r.count}  {r.share:.1%}" if r.flops else str(r.count) for r in rows]
        table.add_row(Text(WORDS[operation], COLORS[operation]), *_marked(cells))
    table.add_section()
    table.add_row("labels read", *("\n".join(read_from(r, o) for o in r.outputs) for r in reports))
    return table


def _totals(reports: Sequence[ModelReport]) -> list[tuple[str, list[str]]]:
    return [
        ("input", ["×".join(map(str, r.input_shape)) for r in reports]),
        ("parameters", [giga(r.parameters) for r in reports]),
        ("FLOPs", [giga(r.flops) for r in reports]),
        ("operators", [str(len(r.nodes)) for r in reports]),
    ]


def _marked(cells: Sequence[str]) -> list[Text]:
    """Cells that are bold where they differ from the first."""
    return [Text(cell, "" if cell == cells[0] else "bold") for cell in cells]
