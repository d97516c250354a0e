"""``tlfx inspect`` in pipes, on terminals and in files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
from command import tlfx, tlfx_on_a_terminal

import tlfx as package

SMALL = ("--kwargs", '{"depth": 2}')
SLOW = pytest.mark.slow


def inspect(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = tlfx("inspect", *arguments)
    assert done.returncode == status, done.stderr
    return done


def without_progress(text: str) -> str:
    """What a terminal shows once the line that tells what is being done was cleared."""
    assert text.startswith("capturing test_vit …\r\x1b[K")
    return text.partition("\x1b[K")[2]


def test_files_and_json_in_one_run(tmp_path: Path) -> None:
    files = {form: tmp_path / f"model.{form}" for form in ("dot", "graphml", "svg", "html")}
    options = [text for form, file in files.items() for text in (f"--{form}", str(file))]
    done = inspect("test_vit", "--only", "spatial", "--json", *SMALL, *options)
    assert done.stderr == "".join(f"wrote {file}\n" for file in files.values())
    data = json.loads(done.stdout)
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
        pytest.param(
            ["test_vit", "--module", "nowhere"],
            "--module 'nowhere' matches no module with nodes; similar names are ",
            marks=SLOW,
        ),
        (["test_vit", "--depth", "0"], "--depth 0: expected 1 or more"),
        (
            ["test_vit", "--html", "x.html", "--module", "blocks.0"],
            "--html writes the whole model and would ignore --module: leave it out, or pass --json too",
        ),
        (
            ["test_vit", "--svg", "/nowhere/x.svg"],
            "--svg '/nowhere/x.svg' cannot be written: '/nowhere' does not exist; create it first",
        ),
    ],
)
def test_bad_input_ends_with_a_message(arguments: Any, message: str) -> None:
    done = inspect(*arguments, *SMALL, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_more_than_a_screen_goes_through_the_pager_in_colour() -> None:
    pager = {"PAGER": "sed s/^/:/"}
    text = without_progress(tlfx_on_a_terminal("inspect", "test_vit", rows=24, columns=90, **pager))
    lines = text.splitlines()
    assert len(lines) > 24
    assert all(line.startswith(":") for line in lines)
    assert "\x1b[" in text
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= 91


def test_less_than_a_screen_is_shown_at_once() -> None:
    shown = tlfx_on_a_terminal("inspect", "test_vit", "--no-color", rows=200, columns=90, PAGER="sed s/^/:/")
    text = without_progress(shown)
    assert "spatial mixing" in text
    assert not text.startswith(":")
    assert "\x1b[3" not in text


@pytest.mark.slow
def test_the_same_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    report = package.inspect("test_vit", kwargs={"depth": 2})
    assert f"{report}\n" == inspect("test_vit", *SMALL).stdout
    assert repr(report) == f"Report(VisionTransformer, {len(report.nodes)} operators)"
    model = timm.create_model("test_vit", depth=2)
    assert str(package.inspect(model)) == str(report)
    assert "evaluation mode" in str(package.inspect(model, training=False))
    assert model.training
    assert package.inspect("test_vit", input_size=(3, 160, 160), kwargs={"depth": 1}).input_shape == (3, 160, 160)
    with pytest.raises(package.ModelError, match="did you mean test_vit"):
        package.inspect("test_vitt")
    with pytest.raises(package.InputError, match="kwargs and paths are for models by name, and a module was given"):
        package.inspect(model, kwargs={"depth": 1})


def test_modules_are_shown_without_constants() -> None:
    text = inspect("test_vit", "--module", "blocks.0", *SMALL).stdout
    tree = text.partition(" class ")[0]
    assert "layer_norm" in tree
    assert "constant" not in tree
    assert "constant" in inspect("test_vit", "--module", "blocks.0", "--nodes", *SMALL).stdout.partition(" class ")[0]
    assert "constant" in inspect("test_vit", "--only", "constant", *SMALL).stdout.partition(" class ")[0]


@pytest.mark.slow
def test_two_models_side_by_side() -> None:
    lines = inspect("test_vit", "test_vit2").stdout.splitlines()
    reports = [package.inspect(name) for name in ("test_vit", "test_vit2")]
    for operation, word in (("spatial_mix", "spatial mixing"), ("residual", "residual"), ("layout", "layout")):
        cells = next(line for line in lines if line.strip().startswith(word)).split()
        assert [cell for cell in cells if cell.isdigit()] == [str(report.counts[operation]) for report in reports]
    row = next(line for line in lines if line.strip().startswith("operators"))
    assert row.split()[1:] == [str(len(report.nodes)) for report in reports]
    done = inspect("test_vit", "test_vit2", "--json", "--depth", "1", status=2)
    assert "--depth, --json: options for one model, and two were given" in done.stderr
