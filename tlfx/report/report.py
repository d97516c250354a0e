"""The public report of a model: its data, and methods that export or draw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlfx.report.data import ModelReport
from tlfx.report.graph import digraph, to_dot, to_graphml
from tlfx.report.page import page, snippet
from tlfx.report.picture import draw
from tlfx.report.style import COLORS
from tlfx.report.text import View

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Report"]


@dataclass(frozen=True)
class Report(ModelReport):
    """The operation of every operator of a model, its tokens and their labels; see :func:`tlfx.inspect`.

    Printing it with rich shows a tree by module; a notebook shows a picture.
    """

    def to_networkx(self) -> Any:
        """All nodes as a networkx.DiGraph, see :func:`tlfx.report.graph.digraph`."""
        return digraph(self.nodes)

    def to_dot(self) -> str:
        """The graph as Graphviz text: nodes in the colour of their class, grouped by module."""
        return to_dot(self.to_networkx(), {o.value: color for o, color in COLORS.items()})

    def to_graphml(self) -> str:
        """The graph as GraphML text with all attributes of :meth:`to_networkx`."""
        return to_graphml(self.to_networkx())

    def to_svg(self) -> str:
        """A picture of the graph by block, coloured by class, as SVG text."""
        return draw(self)

    def to_html(self) -> str:
        """A self-contained HTML page with the picture, the sums and every node."""
        return page(self)

    def _repr_html_(self) -> str:
        return snippet(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield View(self)
