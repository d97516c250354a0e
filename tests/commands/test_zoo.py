"""``tlfx zoo``: rows for every model, in order, kept between sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tlfx.commands.cli import main
from tlfx.commands.zoo import parse_bytes
from tlfx.zoo import pool, table
from tlfx.zoo.table import FIGURES, OPERATIONS


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were analysed, by a stand-in that takes no time."""
    names: list[str] = []

    def analyse(name: str, task: pool.Task) -> table.Row:
        names.append(name)
        figures = {FIGURES[0]: "0.0"} if task.check else {}
        failed = {"status": "failed", "reason": "ProvenanceError: [mixed]"}
        return {"model": name, **(failed if name == "test_byobnet" else {"status": "ok"}), **figures}

    monkeypatch.setattr(pool, "analyse", analyse)
    return names


def zoo(path: Path, *arguments: str) -> int:
    return main(["zoo", *arguments, "--output", str(path)])


@pytest.mark.slow
@pytest.mark.parametrize("models", [["test_resnet"], ["test_convnext", "test_resnet"]])
def test_a_real_sweep(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zoo.csv"
    assert zoo(path, *models, "--check", "--jobs", "2", "--input-size", "32") == 0
    rows = table.read(path)
    assert list(rows) == models
    for row in rows.values():
        assert (row["status"], row["image"], row["reason"]) == ("ok", "3x32x32", "")
        assert sum(int(row[name]) for name in OPERATIONS) == int(row["nodes"])
        assert all(float(row[name]) < 1e-6 for name in FIGURES)
        assert min(float(row["capture_seconds"]), float(row["analysis_seconds"])) > 0
    assert rows["test_resnet"]["family"] == "resnet"
    assert f"{len(models)} ok" in capsys.readouterr().err


def test_what_is_there_is_kept(tmp_path: Path, swept: list[str]) -> None:
    path = tmp_path / "zoo.csv"
    assert zoo(path, "test_vit") == 0
    assert zoo(path, "test_vit", "test_resnet") == 0
    assert swept == ["test_vit", "test_resnet"]
    assert zoo(path, "test_vit", "--fresh") == 0
    assert swept[2:] == ["test_vit"]
    assert list(table.read(path)) == ["test_resnet", "test_vit"]


def test_figures_that_are_not_there_are_measured(tmp_path: Path, swept: list[str]) -> None:
    path = tmp_path / "zoo.csv"
    for options in [], ["--check"], ["--check"], []:
        assert zoo(path, "test_vit", "test_byobnet", *options) == 0
    assert swept == ["test_byobnet", "test_vit", "test_vit"]


def test_an_interrupted_sweep_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def analyse(name: str, task: pool.Task) -> table.Row:
        if name == "test_vit":
            raise KeyboardInterrupt
        return {"model": name, "status": "ok"}

    monkeypatch.setattr(pool, "analyse", analyse)
    path = tmp_path / "zoo.csv"
    assert zoo(path, "test_vit", "test_resnet", "--jobs", "1") == 130
    assert list(table.read(path)) == ["test_resnet"]


@pytest.mark.usefixtures("swept")
def test_summary_names_failures_and_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(tmp_path / "zoo.csv", "test_vit", "test_byobnet", "test_resnet") == 0
    err = capsys.readouterr().err
    assert "3 models: 2 ok, 1 failed" in err
    assert "test_byobnet: failed: ProvenanceError: [mixed]" in err
    assert "2 of 3 families have a model that succeeded\n  without: byobnet" in err


def test_smallest(tmp_path: Path, swept: list[str]) -> None:
    assert zoo(tmp_path / "zoo.csv", "deit_*_patch16_224", "test_resnet", "resnet18", "--smallest") == 0
    assert swept == ["deit_tiny_patch16_224", "test_resnet"]


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("512", 512), ("2K", 2048), ("1.5g", 3 * 2**29), ("8GB", 2**33), ("1T", 2**40)]
)
def test_bytes(text: str, number: int) -> None:
    assert parse_bytes(text) == number


def test_help_without_torch(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["zoo", "--help"])
    assert "--smallest" in capsys.readouterr().out
