"""A folded tree as table rows: one for each module, operator, or run of layout operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len

from tlfx.operations import Operation
from tlfx.report.data import NodeReport
from tlfx.report.fold import Group

__all__ = ["Row", "change", "label", "operators", "rows", "wrapped"]


@dataclass(frozen=True)
class Row:
    """One row at some depth of the tree: a module has a group, operators have nodes."""

    depth: int
    text: str
    nodes: tuple[NodeReport, ...] = ()
    group: Group | None = None
    last: bool = False
    """Whether this is the last row under its parent."""

    @property
    def node(self) -> NodeReport:
        """The node of the row; the last one for several."""
        return self.nodes[-1]

    @property
    def change(self) -> str:
        """Tokens before and after; for a residual also the extent of its branch."""
        text = change(self.nodes[0], self.node)
        over = " … ".join(self.node.ends) if self.group is None else ""
        return f"{text}, over {over}" if over else text


def rows(group: Group, depth: int | None = None, level: int = 0) -> Iterator[Row]:
    """Rows of a group, with modules expanded to ``depth`` levels (all levels for None)."""
    entries = list(_entries(group))
    for place, (prefix, item) in enumerate(entries):
        last = place == len(entries) - 1
        if isinstance(item, tuple):
            yield Row(level, label(prefix, item), item, last=last)
            continue
        closed = depth is not None and level + 1 >= depth
        title = ".".join([*prefix, item.name]) + (f" ×{len(item.numbers)}" if len(item.numbers) > 1 else "")
        yield Row(level, title, tuple(item.nodes) if closed else (), item, last)
        if not closed:
            yield from rows(item, depth, level + 1)


Entry = tuple[tuple[str, ...], "Group | tuple[NodeReport, ...]"]


def _entries(group: Group) -> Iterator[Entry]:
    """Entries of a group: a module with a single entry is replaced by it, runs of layout operators become one."""
    for is_layout, run in groupby(group.items, key=_is_layout):
        if is_layout:
            yield (), tuple(item for item in run if isinstance(item, NodeReport))
            continue
        for item in run:
            yield _opened((), item)


def _is_layout(item: Group | NodeReport) -> bool:
    return isinstance(item, NodeReport) and item.operation is Operation.LAYOUT and item.operator != "placeholder"


def _opened(prefix: tuple[str, ...], item: Group | NodeReport) -> Entry:
    if isinstance(item, NodeReport):
        return prefix, (item,)
    if len(item.numbers) > 1:
        return prefix, item
    entries = list(_entries(item))
    if len(entries) != 1:
        return prefix, item
    return (*prefix, item.name, *entries[0][0]), entries[0][1]


def label(prefix: Sequence[str], nodes: Sequence[NodeReport]) -> str:
    """Text of a row: name of the module and names of its operators."""
    name, held = ".".join(prefix), operators(nodes)
    return held if not prefix or prefix[-1] == held else f"{name} {held}"


def operators(nodes: Sequence[NodeReport]) -> str:
    """Names of operators in sequence, repetitions counted; the images have the name of their argument.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> operators(inspect(nn.Sequential(nn.GELU(), nn.GELU(), nn.Tanh())).select(only="pointwise"))
    'gelu ×2 · tanh'
    """
    short = [node.name if node.operator == "placeholder" else node.short for node in nodes]
    counted = [(name, len(list(run))) for name, run in groupby(short)]
    return " · ".join(f"{name} ×{n}" if n > 1 else name for name, n in counted)


def change(first: NodeReport, last: NodeReport) -> str:
    """Tokens and channels before and after; tokens that stay the same are written once.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> nodes = inspect(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 1))).nodes
    >>> [change(node, node) for node in nodes if node.short == "conv2d"]
    ['224×224 × 3 → 56×56 × 8', '56×56 × 8 → 16']
    """
    before, after = first.before, last.after
    if not before or before == after:
        return after
    stays = f"{last.tokens} × "
    if last.tokens and before.startswith(stays) and after.startswith(stays) and " + " not in before:
        after = after.removeprefix(stays)
    return f"{before} → {after}"


def wrapped(text: str, room: int) -> str:
    """A change, wrapped to several lines if it is too long for one.

    >>> wrapped("14×14 × 96, over conv … bn", 12).splitlines()
    ['14×14 × 96,', 'over conv … bn']
    """
    parts = [text]
    for mark, shown in ((" → ", "\n→ "), (", over ", ",\nover "), (" + ", "\n+ ")):
        parts = [p.replace(mark, shown, 1) if cell_len(p) > room else p for p in parts]
        parts = [line for part in parts for line in part.split("\n")]
    return "\n".join(parts)
