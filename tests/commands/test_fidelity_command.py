"""``tlfx fidelity`` on folders of coloured images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from imagefolder import write_pictures
from torch import nn

from tlfx.analysis import fidelity
from tlfx.analysis.class_images import ClassImages
from tlfx.commands.cli import main
from tlfx.policy import Policy

NAMES = ("blue", "green", "red")
FACTORY = """
import torch
from torch import nn

def build(classes=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders with four images of one colour each, a model of colours, and its weights."""
    for place, name in enumerate(NAMES):
        write_pictures(tmp_path / "images" / name, 4, place)
    (tmp_path / "colours.py").write_text(FACTORY)
    weights = {"2.weight": torch.eye(3), "2.bias": torch.zeros(3)}
    torch.save(weights, tmp_path / "weights.pt")
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    options = ["--path", str(folder), "--weights", str(folder / "weights.pt"), "--images", str(folder / "images")]
    return ["fidelity", "colours:build", *options, "--batch", "4", "--count", "12", "--input-size", "40", *more]


def test_a_model_of_colours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its labels are the area, and so is the influence of an image on the mean colour, but for noise."""
    more = ("--policies", "values=deviation", "--csv", str(folder / "f.csv"))
    assert main(command(folder, *more)) == 0
    shown = capsys.readouterr().out
    assert "colours:build: 100.0 % of the unmixed images right" in shown
    with (folder / "f.csv").open() as file:
        rows = {(row["reference"], row["rule"]): row for row in csv.DictReader(file)}
    assert {rule for _, rule in rows} == {"area", "paper", "values=deviation"}
    assert rows["exchange", "area"]["pairs"] == rows["exchange", "paper"]["pairs"] != "0"
    assert float(rows["exchange", "paper"]["rmse"]) == pytest.approx(0, abs=0.05)
    assert float(rows["exchange", "values=deviation"]["rmse"]) > 0


def test_classes_in_the_order_of_the_logits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    assert main(command(folder, "--classes", str(folder / "classes.txt"), "--policies", "paper")) == 0
    assert "33.3 % of the unmixed images right" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_of_timm_gets_the_images_that_it_expects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures as by the function, on batches with the crop and the normalisation of the model."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3).eval()
    torch.save(model.state_dict(), folder / "vit.pt")
    options = ["--weights", str(folder / "vit.pt"), "--images", str(folder / "images"), "--batch", "6"]
    options += ["--count", "12", "--kwargs", '{"num_classes": 3}', "--csv", str(folder / "f.csv")]
    assert main(["fidelity", "test_vit", *options, "--policies", "residual=norm"]) == 0
    assert "test_vit: " in capsys.readouterr().out
    loader = ClassImages(folder / "images", NAMES, model, (160, 160), batch=6, count=12)
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(6, 3, 160, 160)] * 2
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted([0, 1, 2] * 4)
    np.random.seed(0)
    result = fidelity(model, batches, policies=[Policy(), Policy(residual="norm")])
    assert (folder / "f.csv").read_text() == result.csv()


def test_images_are_cropped_and_normalised(folder: Path) -> None:
    model = nn.Identity()
    model.default_cfg = {"crop_pct": 0.5, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # type: ignore[assignment]
    plain = nn.Identity()
    plain.default_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # type: ignore[assignment]
    (images, _), (whole, _) = (
        next(iter(ClassImages(folder / "images", NAMES, m, size, batch=2, count=12)))
        for m, size in ((model, (20, 20)), (plain, (40, 40)))
    )
    torch.testing.assert_close(images, 2 * whole[:, :, 10:30, 10:30] - 1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch", "3"], "--batch 3 --count 12: expected an even batch"),
        (["--count", "2"], "--batch 4 --count 2: expected an even batch"),
        (["--count", "40", "--batch", "40"], "gives 12 images, expected at least a batch of 40"),
        (["--kwargs", '{"classes": 5}'], "weights.pt"),
        (["--policies", "residual"], "'residual' is not a policy: expected 'paper', 'influence' or FIELD=VALUE"),
        (["--images", "/no/such/folder"], "'/no/such/folder' is not a folder of class folders"),
        (["--classes", "/no/such/file"], "--classes /no/such/file cannot be read"),
        (["--csv", f"{__file__}/x.csv"], "is not a directory"),
    ],
)
def test_refusals(folder: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, *more)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("tlfx fidelity: ")
    assert words in shown.err


def test_weights_are_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fidelity", "test_vit", "--images", str(folder / "images")]) == 2
    assert "an untrained model are arbitrary: pass --weights FILE or --pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("lines", ["red\ngreen\n", "red\ngreen\nblue\nblack\n", "red\ngreen\nred\n", "a\nb\nc\n"])
def test_classes_that_do_not_fit(folder: Path, lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "classes.txt").write_text(lines)
    assert main(command(folder, "--classes", str(folder / "classes.txt"))) == 2
    error = capsys.readouterr().err
    assert any(
        words in error
        for words in (
            "colours:build has 3 logits, but ",
            "a different class in each line",
            "holds folders that are not",
        )
    )


def test_folders_without_images_and_damaged_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "blue" / "0.png").write_bytes(b"no image")
    assert main(command(folder)) == 2
    assert "cannot be read as an image" in capsys.readouterr().err
    (folder / "images" / "empty").mkdir()
    (folder / "classes.txt").write_text("\n".join((*NAMES, "empty")))
    torch.save({"2.weight": torch.randn(4, 3), "2.bias": torch.zeros(4)}, folder / "weights.pt")
    assert main(command(folder, "--kwargs", '{"classes": 4}')) == 2
    assert "holds class folders without images: empty" in capsys.readouterr().err
