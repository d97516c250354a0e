"""examples/README.md: each diff is that of its example, and without it there is a script that knows no tlfx."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from helpers import EXAMPLES, slow_except
from torch import nn

README = (EXAMPLES / "README.md").read_text()
DIFFS = dict(re.findall(r"```diff\n--- (\w+)\.py\n\+\+\+ .*?\n(.*?)```", README, re.DOTALL))
TINY = Namespace(epochs=1, train=64, test=32, batch_size=32, lr=2e-3, devices=1)


def original(name: str) -> str:
    """The example with its diff taken back."""
    source = (EXAMPLES / f"{name}.py").read_text()
    for hunk in DIFFS[name].split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        new, old = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "+-")
        assert source.count(new) == 1, f"not once in {name}.py:\n{new}"
        source = source.replace(new, old)
    return source


def test_every_example_is_listed() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert not {name for name in files if f"]({name})" not in README}
    assert set(DIFFS) == {path.stem for path in EXAMPLES.glob("*.py") if "# tlfx 1" in path.read_text()}
    assert len(DIFFS) == 6


@pytest.mark.parametrize("name", DIFFS)
def test_two_lines_change_beside_imports(name: str) -> None:
    added = [line[1:].strip() for line in DIFFS[name].splitlines() if line.startswith("+")]
    statements = [line for line in added if line and not line.startswith(("import ", "from "))]
    marked = re.findall(r"^.*# tlfx \d.*$", (EXAMPLES / f"{name}.py").read_text(), re.MULTILINE)
    assert statements == [line.strip() for line in marked]
    assert len(statements) <= 2


@pytest.mark.parametrize("name", slow_except([name for name in DIFFS if not name.startswith("timm")], DIFFS))
def test_without_the_diff_it_trains_and_knows_no_tlfx(name: str, tmp_path: Path) -> None:
    source = original(name)
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert "tlfx" not in names
    assert "tlfx" not in re.sub(r'"""(.*?)"""', "", source, flags=re.DOTALL)
    path = tmp_path / f"{name}_original.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    model = module.train(TINY)
    assert isinstance(model, nn.Module)
    assert type(model).__qualname__ == type(model).__name__  # not aligned
