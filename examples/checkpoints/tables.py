"""Tables of the names that tensors have in each layout, one file for each family of models.

A line names a tensor, when it is present, its shape, and its name in each layout:

- `{s}`, `{b}`: numbers of a stage and of a block; `{s+1}` is the next stage. `{p}`: weight and bias; `{p?}`: the same,
  where the bias may be absent. `=`: as in the column before. `-`: the layout does not keep it. `/name`: without the
  prefix of the layout.
- `name[0/3]`: the first third of a tensor, along its first axis. `name:form`: kept in another form (:mod:`forms`).
- when: `always`; `maybe`, in all blocks of a stage or in none; `between` stages, in all but the last; `head`, which
  backbones leave out; `index`, computed from other tensors; `never`, read and left out.
- shape: numbers, `*`, or sizes by name, equal wherever the name is; `{S}` is the last stage. A bias has the first size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

__all__ = ["Cell", "Row", "Table", "tables"]

NUMBER = re.compile(r"\{([sb])(?:\+(\d))?\}")
CELL = re.compile(r"(/?)([^:\[]+)(?:\[(\d)/(\d)\])?(?::(\w+))?$")
DIGITS = re.compile(r"\d+")
Numbers = Mapping[str, int]
"""Numbers of the stage `s` and of the block `b`, if a tensor has them."""


@dataclass(frozen=True)
class Cell:
    """The name of a tensor in a layout; it may be one of several parts there, and in another form."""

    name: str
    part: int = 0
    parts: int = 1
    form: str = ""

    @staticmethod
    def of(text: str, prefix: str) -> Cell:
        """The cell of a table. `prefix` is that of the layout."""
        match = CELL.match(text)
        assert match is not None, text
        root, name, part, parts, form = match.groups()
        return Cell(name if root else prefix + name, int(part or 0), int(parts or 1), form or "")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = NUMBER.split(self.name)  # text, letter, offset, text, …
        return re.compile("".join(r"(\d+)" if i % 3 == 1 else re.escape(t) for i, t in enumerate(parts) if i % 3 != 2))

    def numbers(self, key: str) -> dict[str, int] | None:
        """The numbers in a key, or None if it is not this name.

        >>> Cell("layers.{s+1}.norm").numbers("layers.3.norm")
        {'s': 2}
        >>> Cell("layers.{s+1}.norm").numbers("layers.0.norm") is None
        True
        """
        match = self._pattern.fullmatch(key)
        if match is None:
            return None
        places = NUMBER.findall(self.name)
        numbers = {
            letter: int(text) - int(offset or 0) for (letter, offset), text in zip(places, match.groups(), strict=True)
        }
        return numbers if all(number >= 0 for number in numbers.values()) else None

    def key(self, numbers: Numbers) -> str:
        """The name with these numbers."""
        return filled(self.name, numbers)


def filled(name: str, numbers: Numbers) -> str:
    """A name with numbers for the letters in it.

    >>> filled("layers.{s+1}.blocks.{b}", {"s": 1, "b": 4})
    'layers.2.blocks.4'
    """
    return NUMBER.sub(lambda match: str(numbers[match[1]] + int(match[2] or 0)), name)


@dataclass(frozen=True)
class Row:
    """A tensor of a family: its name, when it is present, its shape, and its cell in each layout that keeps it."""

    name: str
    when: str
    shape: tuple[str, ...]
    cells: Mapping[str, Cell]

    @property
    def letters(self) -> set[str]:
        """Letters of the numbers in its name."""
        return {letter for letter, _ in NUMBER.findall(self.name)}


@dataclass(frozen=True)
class Table:
    """The tensors of a family of models, and the layouts that it has."""

    family: str
    layouts: tuple[str, ...]
    prefixes: Mapping[str, str]
    rows: tuple[Row, ...]

    def find(self, layout: str, key: str) -> list[tuple[int, Cell, dict[str, int]]]:
        """The rows, by their number, whose name in a layout is this key, with the cell and the numbers in the key."""
        near = [
            (number, self.rows[number].cells[layout]) for number in self._like[layout].get(DIGITS.sub("#", key), ())
        ]
        return [(row, cell, numbers) for row, cell in near if (numbers := cell.numbers(key)) is not None]

    @cached_property
    def _like(self) -> dict[str, dict[str, list[int]]]:
        """Numbers of rows for each layout, by their names with # for all digits."""
        numbers_of: dict[str, dict[str, list[int]]] = {layout: {} for layout in self.layouts}
        for number, row in enumerate(self.rows):
            for layout, cell in row.cells.items():
                numbers_of[layout].setdefault(DIGITS.sub("#", NUMBER.sub("#", cell.name)), []).append(number)
        return numbers_of


@cache
def tables() -> dict[str, Table]:
    """All tables by family."""
    return {file.stem: _read(file) for file in sorted(Path(__file__).parent.glob("*.txt"))}


def _read(file: Path) -> Table:
    lines = [line.split() for line in file.read_text().splitlines() if not line.startswith("#")]
    layouts, prefixes, rows = tuple(lines[0][3:]), _cells(lines[1]), lines[2:]
    starts = dict(zip(layouts, (text.strip("-") for text in prefixes), strict=True))
    made = [row for line in rows for row in _rows(line, layouts, starts)]
    return Table(file.stem, layouts, starts, tuple(made))


def _cells(line: list[str]) -> list[str]:
    """The cells of the layouts in a line, with those of the column before for `=`."""
    cells = line[3:]
    for i, text in enumerate(cells):
        if text == "=":
            cells[i] = cells[i - 1]
    return cells


def _rows(line: list[str], layouts: tuple[str, ...], prefixes: Mapping[str, str]) -> Iterator[Row]:
    """The rows of a line: one, or those of the weight and of the bias."""
    name, when, shape = line[0], line[1], tuple(line[2].split(","))
    kept = {layout: text for layout, text in zip(layouts, _cells(line), strict=True) if text != "-"}
    for part in ("weight", "bias") if "{p" in name else ("",):
        cells = {layout: Cell.of(text.replace("{p}", part), prefixes[layout]) for layout, text in kept.items()}
        optional = part == "bias" and "{p?}" in name
        yield Row(
            name.replace("{p}", part).replace("{p?}", part),
            "maybe" if optional else when,
            shape[:1] if part == "bias" else shape,
            cells,
        )
