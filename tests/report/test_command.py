"""``tlfx inspect`` in pipes, on terminals and in files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import tlfx, tlfx_on_a_terminal

SMALL = ("--kwargs", '{"depth": 2}')
SLOW = pytest.mark.slow


def inspect(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = tlfx("inspect", *arguments)
    assert done.returncode == status, done.stderr
    return done


def test_files_and_json_in_one_run(tmp_path: Path) -> None:
    files = {form: tmp_path / f"model.{form}" for form in ("dot", "graphml", "svg", "html")}
    options = [text for form, file in files.items() for text in (f"--{form}", str(file))]
    data = json.loads(inspect("test_vit", "--only", "spatial", "--json", *SMALL, *options).stdout)
    assert {n["class"] for n in data["nodes"]} == {"spatial_mix"}
    assert data["summary"]["spatial_mix"] == len(data["nodes"])
    starts = {"dot": "digraph", "graphml": "<?xml", "svg": "<svg", "html": "<!doctype html>"}
    assert all(files[form].read_text(encoding="utf-8").startswith(start) for form, start in starts.items())


def test_text_in_a_pipe_is_plain() -> None:
    text = inspect("test_vit", "--module", "blocks.*", *SMALL).stdout
    assert "\x1b" not in text
    assert "spatial mixing" in text
    assert "patch_embed " not in text.partition("class ")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test_vitt"], "did you mean test_vit"),
        pytest.param(["test_vit", "--only", "spatail"], "unknown class 'spatail'", marks=SLOW),
        pytest.param(["test_vit", "--module", "nowhere"], "no node of the model is in these modules", marks=SLOW),
        (["test_vit", "--depth", "0"], "--depth 0: expected 1 or more"),
        (["test_vit", "--svg", "/nowhere/x.svg"], "/nowhere/x.svg cannot be written"),
    ],
)
def test_bad_input_ends_with_a_message(arguments: Any, message: str) -> None:
    done = inspect(*arguments, *SMALL, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_more_than_a_screen_goes_through_the_pager_in_colour() -> None:
    pager = {"PAGER": "sed s/^/:/"}
    text = tlfx_on_a_terminal("inspect", "test_vit", rows=24, columns=90, **pager)
    lines = text.splitlines()
    assert len(lines) > 24
    assert all(line.startswith(":") for line in lines)
    assert "\x1b[" in text
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= 91


def test_less_than_a_screen_is_shown_at_once() -> None:
    text = tlfx_on_a_terminal("inspect", "test_vit", "--no-color", rows=200, columns=90, PAGER="sed s/^/:/")
    assert "spatial mixing" in text
    assert not text.startswith(":")
    assert "\x1b[3" not in text
