"""Cards of a picture: the blocks of a folded tree, each with its rows and the skip connections between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tlfx.operations import Operation
from tlfx.report.data import ModelReport, NodeReport
from tlfx.report.fold import Group, fold, tree
from tlfx.report.rows import Row, rows

__all__ = ["Card", "Skip", "cards"]


@dataclass(frozen=True)
class Skip:
    """A skip connection inside a card, or a part of one: from the lower edge of one row (-1: the top of the card) to
    another row."""

    start: int
    end: int
    lane: int


@dataclass(frozen=True)
class Card:
    """A block, or the modules and operators between two blocks."""

    title: str
    kind: str
    times: int
    rows: tuple[Row, ...]
    skips: tuple[Skip, ...]
    tokens: str
    """Token layout of the card's output."""


def cards(report: ModelReport) -> list[Card]:
    """The cards of a report in order of execution, without constants."""
    shown = [n for n in report.nodes if n.operation is not Operation.CONSTANT]
    return [_card(group) for group in _cut(fold(tree(shown, report.modules)))]


def _cut(group: Group) -> Iterator[Group]:
    """One group for each block, and one for everything between two blocks."""
    between: list[Group | NodeReport] = []
    for item in group.items:
        if not isinstance(item, Group) or not _has_blocks(item):
            between.append(item)
            continue
        if between:
            yield _joined(group, between)
            between = []
        yield from [item] if item.is_block and not _is_stage(item) else _cut(item)
    if between:
        yield _joined(group, between)


def _has_blocks(group: Group) -> bool:
    return group.is_block or any(isinstance(i, Group) and _has_blocks(i) for i in group.items)


def _is_stage(group: Group) -> bool:
    """Whether a numbered module is a stage: it contains blocks instead of being one."""
    containers = [i for i in group.items if isinstance(i, Group) and any(_is_numbered(j) for j in i.items)]
    return len(group.numbers) == 1 and any(_has_blocks(c) for c in containers)


def _is_numbered(item: Group | NodeReport) -> bool:
    return isinstance(item, Group) and item.is_block


def _joined(parent: Group, items: list[Group | NodeReport]) -> Group:
    names = [i.name if isinstance(i, Group) else i.short for i in items]
    named = [i.name for i in items if isinstance(i, Group)] or names
    ends = list(dict.fromkeys((named[0], named[-1])))
    prefix = f"{parent.path}." if parent.path else ""
    return Group(prefix + " … ".join(ends), "", items)


def _card(group: Group) -> Card:
    held = tuple(rows(group))
    place = {node.name: i for i, row in enumerate(held) for node in row.nodes}
    ends = [(i, row.node) for i, row in enumerate(held) if row.nodes and row.node.skip]
    spans = [span for end, node in ends for span in _spans(node, end, place)]
    last = next((row.node.after for row in reversed(held) if row.nodes and row.node.after), "")
    kind = group.kind if group.kind not in ("Sequential", "ModuleList") else ""
    return Card(group.title, kind, max(len(group.numbers), 1), held, tuple(_lanes(spans)), last)


def _spans(node: NodeReport, end: int, place: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """From where a skip connection starts to its residual, in two parts around the rows that are on it."""
    on_it = sorted({place[name] for name in node.shortcut if name in place})
    start = place.get(str(node.skip), -1)
    if on_it:
        yield start, on_it[0]
        start = on_it[-1]
    yield start, end


def _lanes(spans: list[tuple[int, int]]) -> Iterator[Skip]:
    """Assign overlapping skip connections to different lanes, the longest to the outermost."""
    taken: list[Skip] = []
    for start, end in sorted(spans, key=lambda s: s[1] - s[0]):
        used = {s.lane for s in taken if s.start < end and start < s.end}
        taken.append(Skip(start, end, next(i for i in range(len(taken) + 1) if i not in used)))
    yield from sorted(taken, key=lambda s: s.end)
