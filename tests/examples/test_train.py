"""`examples/train.py` with few digits, and the pictures it trains on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

TINY = ["--epochs", "1", "--train", "64", "--test", "20", "--batch-size", "32", "--device", "cpu"]
FIGURES = {"accuracy", "loss", "lambda_gap", "images_per_second", "seconds"}


def test_both_targets_train_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import main

    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--output", str(tmp_path / "result.json")])
    main()
    shown = capsys.readouterr().out
    for word in ("plain", "aligned", "λ_area", "seed 0"):
        assert word in shown
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["settings"]["seed"] == 0
    assert list(record["results"]) == ["plain", "aligned"]
    for figures in record["results"].values():
        assert set(figures) == FIGURES
        assert all(math.isfinite(figure) for figure in figures.values())
        assert 0.0 <= figures["accuracy"] <= 1.0
        assert figures["loss"] > 0.0
        assert figures["images_per_second"] > 0.0
    assert record["results"]["plain"]["lambda_gap"] == 0.0
    assert 0.0 < record["results"]["aligned"]["lambda_gap"] < 1.0


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from train import parse

    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    shown = capsys.readouterr().out
    for flag in ("--methods", "--epochs", "--seed", "--device", "--output"):
        assert flag in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--batch-size", "7"], "expected an even number"), (["--train", "4500"], "5000 digits in all")],
)
def test_settings_that_cannot_be_run(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from train import parse

    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert words in capsys.readouterr().err


def test_pictures() -> None:
    from data import NUM_CLASSES, load_digits

    train, test = load_digits(100, 60)
    seen = {digit.numpy().tobytes() for digit in train.digits}
    assert len(seen) == len(train) == 100
    assert not seen & {digit.numpy().tobytes() for digit in test.digits}
    assert set(train.labels.tolist()) <= set(range(NUM_CLASSES))

    first, again = (list(train.batches(32, 5, shuffle=True)) for _ in range(2))
    assert [tuple(images.shape) for images, _ in first] == [(32, 3, 28, 28)] * 3
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert [len(labels) for _, labels in test.batches(50, 0, shuffle=False)] == [50, 10]
    with pytest.raises(ValueError, match="there are 5000"):
        load_digits(5000, 1)
