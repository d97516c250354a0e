"""A report as text: a tree by module or a flat list, and the sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tlfx.operations import Operation
from tlfx.report.data import NodeReport
from tlfx.report.fold import fold, tree
from tlfx.report.lines import WITH_TOKENS, lines
from tlfx.report.rows import Row, rows
from tlfx.report.stages import read_from, stages
from tlfx.report.style import COLORS, WORDS, giga

if TYPE_CHECKING:
    from tlfx.report.data import ModelReport

__all__ = ["View"]

WIDEST = 160
"""Largest width in columns: wider tables are hard to read across."""


class View:
    """A report for printing with rich: all or some nodes, as a tree or flat; sums are always over the whole model."""

    def __init__(
        self,
        report: ModelReport,
        nodes: Sequence[NodeReport] | None = None,
        depth: int | None = None,
        flat: bool = False,
    ) -> None:
        self.report = report
        self.selected = nodes
        self.depth = depth
        self.flat = flat

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        yield self._headline()
        yield Text()
        yield from self._rows(width)
        yield Text()
        yield _summary(self.report, width)
        yield from _stages(self.report)
        yield from _read(self.report)

    def _headline(self) -> Text:
        report = self.report
        shape = "×".join(map(str, report.input_shape))
        mode = "training" if report.training else "evaluation"
        parts = [f"input {shape}", f"{giga(report.parameters)} parameters", f"{giga(report.flops)}FLOP", f"{mode} mode"]
        return Text.assemble((report.model, "bold"), "  ", (" · ".join(parts), "dim"))

    def _rows(self, width: int) -> Iterator[Text]:
        """A tree by module, without constants unless they were selected; or a flat list of all nodes."""
        if self.flat:
            return lines([Row(0, node.name, (node,)) for node in self.nodes], width, guides=False)
        hidden = (Operation.CONSTANT,) if self.selected is None else ()
        shown = [n for n in self.nodes if n.operation not in hidden]
        return lines(rows(fold(tree(shown, self.report.modules)), self.depth), width)

    @property
    def nodes(self) -> Sequence[NodeReport]:
        """The nodes to show."""
        return self.report.nodes if self.selected is None else self.selected


def _summary(report: ModelReport, width: int) -> Table:
    """A table of operators and fraction of FLOPs by class."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_footer=True, footer_style="dim")
    table.add_column("class", footer="all")
    table.add_column("operators", justify="right", footer=str(len(report.nodes)))
    table.add_column("FLOPs", justify="right", footer=f"{giga(report.flops)}")
    table.add_column("", footer="")
    if width >= WITH_TOKENS:
        table.add_column("label rule", footer="")
    for row in report.summary:
        bar = "█" * round(10 * row.share) if row.flops else ""
        share = f"{row.share:.1%}" if row.flops else ""
        color = COLORS[row.operation]
        cells: list[Text | str] = [Text(WORDS[row.operation], color), str(row.count), share, Text(bar, color)]
        if width >= WITH_TOKENS:
            cells.append(row.operation.formula)
        table.add_row(*cells)
    return table


def _stages(report: ModelReport) -> Iterator[Text]:
    changes = stages(report)
    names = max((cell_len(name) for name, _, _ in changes), default=0)
    yield Text("tokens by stage", "dim")
    for name, before, after in changes:
        change = after if before == after else f"{before} → {after}"
        yield Text(f"  {name}{' ' * (names - cell_len(name))}  {change}")


def _read(report: ModelReport) -> Iterator[Text]:
    yield Text()
    yield Text("labels read", "dim")
    for output in report.outputs:
        yield Text(f"  output {'×'.join(map(str, output.shape[1:]))}: {read_from(report, output)}")
