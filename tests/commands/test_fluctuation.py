"""``tlfx fluctuation``: tables, a CSV file and a plot."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tlfx.commands.cli import main

QUICK = ("--pairs", "2", "--presence", "1")


@pytest.fixture
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of layers are cut where a terminal is narrow."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.slow
@pytest.mark.usefixtures("_wide")
def test_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, plot = tmp_path / "f.csv", tmp_path / "f.png"
    assert main(["fluctuation", "test_vit", "test_resnet", *QUICK, "--csv", str(table), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    with table.open() as file:
        rows = list(csv.DictReader(file))
    models = list(dict.fromkeys(row["model"] for row in rows))
    assert models == ["test_vit", "test_resnet"]
    assert {row["pair"] for row in rows} == {"0", "1"}
    for model in models:
        layers = [row["layer"] for row in rows if row["model"] == model and row["pair"] == "0"]
        assert (layers[0], layers[-1]) == ("(image)", "(output)")
        for layer in layers:
            assert layer in shown
    with Image.open(plot) as image:
        assert image.size == (680, 560)
    assert shown.count("RMSE of TL-Align to area over 2 pairs") == 2
    assert shown.count("the classifier reads no class token: no TransMix") == 1
    last = [row for row in rows if row["model"] == "test_resnet" and row["layer"] == "(output)"]
    error = (sum((float(r["area"]) - float(r["aligned"])) ** 2 for r in last) / 2) ** 0.5
    summary = next(line for line in reversed(shown.splitlines()) if line.strip().startswith("test_resnet"))
    assert summary.split() == [
        "test_resnet",
        f"{float(last[0]['faded']):.1%}",
        f"{error:.3f}",
        "–",
        summary.split()[-1],
    ]


@pytest.mark.usefixtures("_wide")
def test_bars_and_single_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pairs", "1", "--presence", "0", "--operations", "--bars", str(tmp_path / "bars.png")]
    assert main(["fluctuation", "test_vit", *options]) == 0
    shown = capsys.readouterr().out
    for block in range(6):
        assert f"blocks.{block}.attn (scaled_dot_product_attention" in shown
    assert "presence p(z) of eq. 2 in one operation" in shown
    with Image.open(tmp_path / "bars.png") as image:
        assert image.size == (400, 340)


@pytest.mark.slow
def test_one_model_with_two_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("test_vit")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)
    torch.save(model.state_dict(), tmp_path / "sharp.pt")
    weights = [word for name in ("plain.pt", "sharp.pt") for word in ("--weights", str(tmp_path / name))]
    file = tmp_path / "f.csv"
    assert main(["fluctuation", "test_vit", "test_vit", *QUICK, *weights, "--csv", str(file)]) == 0
    with file.open() as rows:
        least = {
            r["model"]: float(r["least"]) for r in csv.DictReader(rows) if r["layer"] == "(output)" and r["pair"] == "0"
        }
    plain, sharp = least
    assert (plain, sharp) == (f"test_vit ({tmp_path / 'plain.pt'})", f"test_vit ({tmp_path / 'sharp.pt'})")
    assert least[plain] > least[sharp]
    assert "TransMix" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["test_vit", "--pairs", "0"],
            "--pairs 0 --presence 2: expected at least one pair, and presence for at most all pairs",
        ),
        (["test_vit", "--presence", "0", "--plot", "f.png"], "--plot draws presence: pass --presence 1 or more, or --"),
        (["test_vit", "--pairs", "2", "--presence", "3"], "at most all pairs"),
        (
            ["test_vit", "test_vit"],
            "test_vit was given twice; give each model once, or each time with different --weights",
        ),
        (
            ["test_vit", "test_vit2", "--weights", "a.pt"],
            "--weights was given 1 times for 2 models, expected once per model",
        ),
        (["test_vit", "--plot", "f.bmp"], "--plot 'f.bmp': expected a file that ends in .png, .pdf, .svg"),
        (["test_vit", "--csv", "f.txt"], "--csv 'f.txt': expected a file that ends in .csv"),
        (["test_vit", "--csv", "no/f.csv"], "--csv 'no/f.csv' cannot be written: 'no' does not exist; create it first"),
        (["test_vit", "--kwargs", '{"in_chans": 4}'], "test_vit takes inputs of 4x160x160, expected images of three"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fluctuation", *arguments]) == 2
    assert message in capsys.readouterr().err
