"""A report: what is known of every node, sums over them, and the ways to look at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tlfx.operations import Operation
from tlfx.report.data import SCHEMA, NodeReport, OutputReport, Summary, parse_classes
from tlfx.report.graph import digraph, to_dot, to_graphml
from tlfx.report.style import COLORS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What every operator of a model does to its tokens and their labels; see :func:`tlfx.inspect`.

    Printing it with rich shows a tree by module; in a notebook it shows a picture.
    """

    model: str
    input_shape: tuple[int, ...]
    training: bool
    batch: int
    """Batch size of the shapes in the report."""
    parameters: int
    modules: dict[str, str]
    """Class of every module, by its path."""
    nodes: tuple[NodeReport, ...]
    outputs: tuple[OutputReport, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Nodes of each class; the classes come in the order of :class:`tlfx.Operation` and are all there.

        >>> from torch import nn
        >>> from tlfx.report import inspect
        >>> inspect(nn.Conv2d(3, 8, 4, 4)).counts["aggregation"]
        1
        """
        return {o.value: sum(n.operation is o for n in self.nodes) for o in Operation}

    @property
    def flops(self) -> int:
        """FLOPs of contractions and convolutions for one image, a multiplication and an addition counting as two."""
        return sum(n.flops for n in self.nodes)

    @property
    def summary(self) -> list[Summary]:
        """Operators and FLOPs of every class."""
        by_class = {o: sum(n.flops for n in self.nodes if n.operation is o) for o in Operation}
        total = max(self.flops, 1)
        return [Summary(o, self.counts[o.value], f, f / total) for o, f in by_class.items()]

    @cached_property
    def by_name(self) -> dict[str, NodeReport]:
        """Nodes by their name."""
        return {n.name: n for n in self.nodes}

    def select(self, module: str | None = None, only: str | Sequence[str] | None = None) -> list[NodeReport]:
        """Nodes in modules that a glob pattern names, of some classes alone (``"spatial,residual"``).

        Raises InputError for an unknown class.
        """
        classes = parse_classes(only)
        return [n for n in self.nodes if n.operation in classes and (module is None or n.is_inside(module))]

    def to_dict(self, nodes: Sequence[NodeReport] | None = None) -> dict[str, Any]:
        """The report for JSON; ``nodes`` lists those given instead of all, everything else is of the whole model.

        Keys, in this order: ``schema`` (version of this form), ``model``, ``input`` (shape of one image),
        ``training``, ``batch``, ``parameters``, ``flops``, ``summary`` (count of nodes by class), ``flops_by_class``,
        ``outputs`` (index, shape, rows, of, node) and ``nodes`` (name, operator, class, module, module_class, inputs,
        in_shapes, out_shapes, before, after, rule, why, flops, read, skip, branch), in order of execution.
        """
        return {
            "schema": SCHEMA,
            "model": self.model,
            "input": list(self.input_shape),
            "training": self.training,
            "batch": self.batch,
            "parameters": self.parameters,
            "flops": self.flops,
            "summary": dict(self.counts),
            "flops_by_class": {s.operation.value: s.flops for s in self.summary},
            "outputs": [o.to_dict() for o in self.outputs],
            "nodes": [n.to_dict() for n in (self.nodes if nodes is None else nodes)],
        }

    def to_networkx(self) -> Any:
        """A networkx.DiGraph of all nodes, see :func:`tlfx.report.graph.digraph`."""
        return digraph(self.nodes)

    def to_dot(self) -> str:
        """Graphviz text: nodes in the colour of their class, boxed by module."""
        return to_dot(self.to_networkx(), {o.value: color for o, color in COLORS.items()})

    def to_graphml(self) -> str:
        """GraphML text with every attribute of :meth:`to_networkx`."""
        return to_graphml(self.to_networkx())

    def to_svg(self) -> str:
        """A picture of the graph by block, coloured by class, as SVG text."""
        from tlfx.report.picture import draw

        return draw(self)

    def to_html(self) -> str:
        """A page with the picture, the sums and every node, as HTML text that loads nothing."""
        from tlfx.report.page import page

        return page(self)

    def _repr_html_(self) -> str:
        from tlfx.report.page import snippet

        return snippet(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from tlfx.report.text import View

        yield View(self)
