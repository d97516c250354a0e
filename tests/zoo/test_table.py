"""The CSV file of a sweep."""

from __future__ import annotations

from pathlib import Path

from tlfx import Operation
from tlfx.analysis.figures import INVARIANTS
from tlfx.zoo.table import COLUMNS, FIGURES, OPERATIONS, append, read, write


def row(model: str, **cells: str) -> dict[str, str]:
    return {"model": model, "status": "ok", **cells}


def test_columns() -> None:
    assert [Operation(name) for name in OPERATIONS] == list(Operation)
    measured = (*(invariant.name for invariant in INVARIANTS), "extra", "missing")
    assert tuple(f"check_{name}" for name in measured) == FIGURES
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    assert read(path) == {}
    write(path, [row("b"), row("a", reason='a "quoted", long one')])
    append(path, row("Z"))
    rows = read(path)
    assert list(rows) == ["a", "b", "Z"]
    assert rows["a"]["reason"] == 'a "quoted", long one'
    assert rows["b"]["nodes"] == ""
    write(path, rows.values())
    assert list(read(path)) == ["Z", "a", "b"]
    assert list(path.parent.iterdir()) == [path]


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    write(path, [row("a")])
    append(path, row("b"))
    path.write_text(path.read_text()[:-12])
    assert list(read(path)) == ["a"]
