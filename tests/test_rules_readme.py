"""`rules/README.md`: its code runs and prints what it says, and its tables name every verb."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from tlfx.propagate.verbs import OpContext
from tlfx.rules.registry import REGISTRY

README = Path(__file__).parents[1] / "rules" / "README.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_its_code_runs_and_prints_what_it_says() -> None:
    names: dict[str, Any] = {"__name__": "rules_readme"}
    printed = ""
    text = README.read_text(encoding="utf-8")
    with REGISTRY.restored():
        for block in BLOCK.finditer(text):
            language, code = block.groups()
            if language == "text":
                assert printed == code
                continue
            line = text[: block.start(2)].count("\n")
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * line + code, str(README), "exec"), names)
            printed = output.getvalue()


def test_its_tables_name_every_verb() -> None:
    cells = [
        line.split("|")[1] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `op.")
    ]
    named = [name for cell in cells for name in re.findall(r"`op\.(\w+)", cell)]
    assert sorted(named) == [name for name in dir(OpContext) if not name.startswith("_")]
