"""The public report of a model: its data, and methods that export or draw them."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tlfx.report.data import ModelReport
from tlfx.report.graph import digraph, to_dot, to_graphml
from tlfx.report.page import page, snippet
from tlfx.report.picture import draw
from tlfx.report.style import COLORS, count
from tlfx.report.text import View

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Report"]


PIPED_WIDTH = 120
"""Width of text in columns where there is no terminal."""


@dataclass(frozen=True, repr=False)
class Report(ModelReport):
    """The operation of every operator of a model, its tokens and their labels; see :func:`tlfx.inspect`.

    Printing it shows the text of ``tlfx inspect``, a tree by module; a notebook shows a picture.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> inspect(nn.Conv2d(3, 8, 4, 4))
    Report(Conv2d, 4 operators)
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model}, {count(len(self.nodes), 'operator')})"

    def __str__(self) -> str:
        """The text of ``tlfx inspect``, as wide as the terminal."""
        from rich.console import Console

        text = io.StringIO()
        width = shutil.get_terminal_size((PIPED_WIDTH, 24)).columns
        Console(file=text, width=width, color_system=None, force_terminal=False).print(self)
        return text.getvalue().rstrip("\n")

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
