"""The documentation site: it builds without warnings, its notebook runs, and the messages that it explains exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path, execute: bool) -> None:
    """Build the site, with or without executing its notebook."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    settings = {**os.environ, "EXECUTE_NOTEBOOKS": str(execute).lower()}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=settings)
    assert done.returncode == 0, done.stderr


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    build(tmp_path, execute=False)
    assert 'id="tlfx.align"' in (tmp_path / "api" / "tlfx" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    build(tmp_path, execute=True)
    quick_start = (tmp_path / "quick-start" / "index.html").read_text(encoding="utf-8")
    assert "step 2: loss" in quick_start
    assert "(True, " in quick_start  # logits are equal
    assert "data:image/png" in quick_start


def messages() -> Iterator[str]:
    """The string literals of the package, without what is filled in."""
    for file in (ROOT / "tlfx").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_that_are_explained_exist() -> None:
    page = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    explained = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert len(explained) > 5
    known = list(messages())
    assert [text for text in explained if not any(text in message for message in known)] == []
