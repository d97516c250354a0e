"""Rows of a tree as lines of text in columns: operator, class, label rule and tokens, as far as the width allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from tlfx.operations import Operation
from tlfx.report.rows import Row, wrapped
from tlfx.report.style import COLORS, WORDS, count

__all__ = ["WITH_TOKENS", "lines"]

CLASS_WIDTH = max(cell_len(word) for word in WORDS.values())
RULE_WIDTH = max(cell_len(o.formula) for o in Operation)
WITH_RULE, WITH_TOKENS = 84, 56
"""Smallest widths at which the columns of rules and of tokens are shown."""
QUIET = (Operation.LAYOUT, Operation.CONSTANT)
GAP = "  "


def lines(rows: Iterable[Row], width: int, guides: bool = True) -> Iterator[Text]:
    """One or two lines for each row, with the lines of the tree in front unless ``guides`` is False."""
    held = [(stem, row) for stem, row in _stems(rows)] if guides else [(("", ""), row) for row in rows]
    opened = [(stem, row) for stem, row in held if not _is_module(row)]
    named = [cell_len(_shorter(stem[0] + row.text, width)) for stem, row in opened]
    changes = [cell_len(row.change) for _, row in opened]
    room = width - CLASS_WIDTH - 2 - (RULE_WIDTH + 2 if width >= WITH_RULE else 0)
    name = min(max(named, default=0), room)
    if width >= WITH_TOKENS:
        name = min(name, max(room - 2 - max(changes, default=0), room // 2))
    for stem, row in held:
        yield from _module(stem, row, width) if _is_module(row) else _operator(stem, row, name, width)


def _is_module(row: Row) -> bool:
    return row.group is not None


def _stems(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, str], Row]]:
    """Rows with the tree lines in front of their first and of further text lines."""
    last: dict[int, bool] = {}
    for row in rows:
        last[row.depth] = row.last
        before = "".join("  " if last[level] else "│ " for level in range(row.depth))
        yield (before + ("└ " if row.last else "├ "), before + ("  " if row.last else "│ ")), row


def _operator(stem: tuple[str, str], row: Row, name: int, width: int) -> Iterator[Text]:
    operation = row.node.operation
    quiet = "dim" if operation in QUIET else ""
    title = _shorter(row.text, name - cell_len(stem[0]))
    line = Text.assemble((stem[0], "dim"), (title, quiet), " " * (name - cell_len(stem[0] + title)), GAP)
    line.append(set_cell_size(WORDS[operation], CLASS_WIDTH), quiet or COLORS[operation])
    if width >= WITH_RULE:
        line.append(GAP).append(set_cell_size(row.node.rule, RULE_WIDTH), quiet)
    if width < WITH_TOKENS:
        yield _ended(line)
        return
    start = cell_len(line.plain) + len(GAP)
    first, *rest = wrapped(row.change, width - start).split("\n")
    yield _ended(line.append(GAP).append(_shorter(first, width - start), quiet))
    for text in rest:
        indent = " " * (start - cell_len(stem[1]))
        yield _ended(Text.assemble((stem[1], "dim"), indent, (_shorter(text, width - start), quiet)))


def _module(stem: tuple[str, str], row: Row, width: int) -> Iterator[Text]:
    """Lines of a module: its name; for a closed one also the number of operators by class."""
    kind = row.group.kind if row.group is not None else ""
    line = Text.assemble((stem[0], "dim"), (row.text, "bold"), "  ", (kind, "dim"))
    if not row.nodes:
        line.truncate(width, overflow="ellipsis")
        yield _ended(line)
        return
    yield _ended(line.append(f"  {row.change}", ""))
    shown = [o for o in Operation if any(n.operation is o for n in row.nodes)]
    parts = ", ".join(f"{sum(n.operation is o for n in row.nodes)} {WORDS[o]}" for o in shown)
    yield Text.assemble((stem[1], "dim"), (f"  {count(len(row.nodes), 'operator')}: {parts}", "dim"))


def _shorter(text: str, width: int) -> str:
    """A text truncated to a width, with an ellipsis."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def _ended(line: Text) -> Text:
    line.rstrip()
    return line
