"""`docs/how-it-works.md`: its code runs and prints what it shows, and its table says where each operation is decided.

TLFX_GOLDEN=1 writes what the code prints into the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tlfx.operations import Operation
from tlfx.propagate.verbs import OpContext

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-it-works.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELLS = (r"([\w -]+)", r"`(\w+)`", r"`(\w+)` in `(rules/\S+)`", r"`(\w+)`", r"`(\w+)` in `(\S+)`")
ROW = re.compile(rf"^[|] {' [|] '.join(CELLS)} [|]", re.MULTILINE)
NAMES = {
    "spatial mixing": Operation.SPATIAL_MIX,
    "channel mixing": Operation.CHANNEL_MIX,
    "point-wise": Operation.POINTWISE,
    "residual": Operation.RESIDUAL,
    "aggregation": Operation.AGGREGATION,
}


def callers() -> Iterator[tuple[str, str]]:
    """File, relative to the repository if it is inside, and function of all calls in progress, the innermost first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename).resolve()
        yield str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file), frame.f_code.co_name
        frame = frame.f_back


@pytest.fixture(scope="module")
def decisions() -> Iterator[dict[tuple[str, Operation], list[tuple[str, str]]]]:
    """The calls in progress when an operation of a node was decided, by node and operation."""
    made: dict[tuple[str, Operation], list[tuple[str, str]]] = {}
    original = OpContext.record

    def record(self: OpContext, operation: Operation) -> None:
        made.setdefault((self.node.name, operation), list(callers()))
        original(self, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpContext, "record", record)
        yield made


@pytest.fixture(scope="module")
def names(decisions: object) -> dict[str, Any]:
    """The variables of the page after all its code has run, and what each block printed, as "printed"."""
    text = PAGE.read_text(encoding="utf-8")
    variables: dict[str, Any] = {"__name__": "how_it_works"}
    printed, shown = "", []
    for block in BLOCK.finditer(text):
        language, code = block.groups()
        if language == "text":
            shown.append((block, printed))
            continue
        output = io.StringIO()
        line = text[: block.start(2)].count("\n")
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * line + code, str(PAGE), "exec"), variables)
        printed = "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())
    if os.environ.get("TLFX_GOLDEN"):
        for block, output_of in reversed(shown):
            text = text[: block.start(2)] + output_of + text[block.end(2) :]
        PAGE.write_text(text, encoding="utf-8")
    return {**variables, "printed": [printed for _, printed in shown]}


def test_its_code_prints_what_it_shows(names: dict[str, Any]) -> None:
    shown = [code for language, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if language == "text"]
    assert len(shown) == 6
    assert names["printed"] == shown


def test_its_numbers_are_those_of_its_arithmetic(names: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (mean,) = names["labels"]["mean"].tolist()
    assert names["soft_target"].tolist() == [pytest.approx([mean, 1 - mean])]
    for node in ("relu", "matmul_1", "add", "mean"):
        (row,) = re.findall(rf"^\| [\w]+ \(`{node}`\) \|(.*)\|$", text, re.MULTILINE)
        results = [float(cell.split("=")[-1]) for cell in row.split("|") if cell.strip()]
        assert results == pytest.approx(names["labels"][node].flatten().tolist())


def test_it_says_where_each_operation_is_decided(
    names: dict[str, Any], decisions: dict[tuple[str, Operation], list[tuple[str, str]]]
) -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    operations = {node.name: operation for node, operation in names["propagation"].operations.items()}
    assert {NAMES[operation] for operation, *_ in rows} == set(NAMES.values())
    for operation, node, rule, rule_file, verb, function, file in rows:
        assert operations[node] is NAMES[operation]
        calls = decisions[node, NAMES[operation]]
        place = calls.index((rule_file, rule))
        assert calls[place - 1][1] == verb
        assert (file, function) in calls[:place]


def test_its_folders_exist() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Where each step lives")[2]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    places = [place for cell in cells for place in re.findall("`(.*?)`", cell)]
    assert len(places) > 8
    assert all((ROOT / place).exists() for place in places)
    packages = {path.parent.name for path in (ROOT / "tlfx").glob("*/__init__.py")}
    steps = {"capture", "graph", "propagate", "rules", "rewrite", "runtime", "calls"}
    assert steps <= packages
    assert steps == {place.split("/")[1] for place in places if place.endswith("/") and place.startswith("tlfx/")}
