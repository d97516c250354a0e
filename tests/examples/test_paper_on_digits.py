"""Tables 5 and 6 of `examples/paper.py` on digits: other data sets, corruptions, hard digits and errors."""

from __future__ import annotations

import string
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import build
from data import NUM_CLASSES, load_digits
from evaluation.classifier import Classifier
from evaluation.folders import Classes
from experiment import Run
from glyphs import FONTS, printed, uci_digits
from methods import Method
from reproduction import digits
from reproduction.corruptions import CORRUPTIONS, corrupt
from torch import nn
from training import Recipe, accuracy

from tlfx.errors import InputError

CPU = torch.device("cpu")
TINY = ["--epochs", "1", "--train", "32", "--test", "40", "--batch-size", "16", "--device", "cpu"]
RECIPE = Recipe(epochs=1, batch_size=16, train=64, test=20, lr=3e-3, mix_prob=0.5, seed=0, device="cpu")


def test_printed_characters_of_training_and_test_are_in_different_fonts() -> None:
    train, test = printed(string.ascii_uppercase, 4000, 1000)
    assert len(train) + len(test) == 26 * len(FONTS)
    assert len(test) == 26 * (len(FONTS) // 3)
    for part in (train, test):
        assert torch.equal(part.labels.bincount(), torch.full((26,), len(part) // 26))
        assert (part.digits.amax((1, 2, 3)) > 0.5).all()
    same = (train.digits[:, None] - test.digits[None]).abs().amax((2, 3, 4)) == 0
    assert same.float().mean() < 1e-3
    assert len(printed(string.digits, 10, 5)[0]) == 10


def test_uci_digits_are_split() -> None:
    train, test = uci_digits(4000, 1000)
    assert (len(train), len(test)) == (1198, 599)
    assert train.labels.bincount().min() > 100
    assert train.digits.shape[1:] == load_digits(1, 1)[0].digits.shape[1:]
    assert train.digits.amin() == 0
    assert train.digits.amax() == 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_severity(name: str) -> None:
    data, _ = digits.pictures(load_digits(1, 40)[1])
    assert data.dtype == torch.uint8
    changes = [(corrupt(data, name, severity).float() - data.float()).square().mean() for severity in range(1, 6)]
    assert all(weaker <= stronger for weaker, stronger in pairwise(changes))
    assert changes[-1] > 10.0
    assert torch.equal(corrupt(data, name, 5), corrupt(data, name, 5))


def test_corruptions_by_hand() -> None:
    image = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    image[:, 0, 14, 14] = 200
    brighter = corrupt(image, "brightness", 4)  # 0.2 of 255, with the same hue
    assert brighter[0, :, 14, 14].tolist() == [251, 0, 0]
    assert brighter[0, :, 0, 0].tolist() == [51, 51, 51]
    flat = torch.full((1, 3, 28, 28), 90, dtype=torch.uint8)
    for name in ("defocus_blur", "zoom_blur", "contrast", "pixelate"):
        assert torch.equal(corrupt(flat, name, 3), flat), name
    salted = corrupt(flat.expand(50, -1, -1, -1), "impulse_noise", 5)
    assert float((salted == 255).float().mean()) == pytest.approx(0.035, abs=0.005)
    assert float((salted == 0).float().mean()) == pytest.approx(0.035, abs=0.005)
    noisy = corrupt(flat.expand(50, -1, -1, -1), "gaussian_noise", 5).float() / 255
    assert float(noisy.std()) == pytest.approx(0.1, abs=0.005)
    shot = corrupt(flat.expand(50, -1, -1, -1), "shot_noise", 5).float() / 255
    assert float(shot.var()) == pytest.approx(90 / 255 / 50, rel=0.05)


class Constant(nn.Module):
    """Gives all images the same class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(NUM_CLASSES)[self.label].expand(len(images), -1)


def constant(label: int) -> Classifier:
    return Classifier(Constant(label), Classes({}, NUM_CLASSES, ""), [0.3] * 3, [0.25] * 3)


def test_hard_digits_are_those_that_the_reference_misses() -> None:
    data = digits.pictures(load_digits(1, 200)[1])
    images, labels = digits.missed(constant(3), data, CPU)
    assert len(images) == len(labels) == int((data[1] != 3).sum())
    assert not (labels == 3).any()
    threes = (data[0][data[1] == 3], data[1][data[1] == 3])
    with pytest.raises(
        InputError, match="classifies all test digits correctly, so none are hard: pass a larger --test"
    ):
        digits.missed(constant(3), threes, CPU)
    [errors, others] = digits.corrupted_errors([constant(3), constant(4)], threes, CPU)
    assert errors == {name: [0.0] * 5 for name in CORRUPTIONS}
    assert others == {name: [1.0] * 5 for name in CORRUPTIONS}
    with pytest.raises(InputError, match=r"has no errors under gaussian_noise, .* so that mCE is undefined"):
        digits.baseline(errors)
    assert digits.baseline(others).errors == dict.fromkeys(CORRUPTIONS, 1.0)


def test_fine_tuning_starts_from_the_weights_of_the_run(tmp_path: Path) -> None:
    """With another classifier: at a rate of zero, the result is that of the weights with a new classifier."""
    run = Run("vit", Method.parse("aligned"), replace(RECIPE, lr=0.0))
    model: Any = build("vit", 7)
    run.file(tmp_path).parent.mkdir(parents=True)
    torch.save(model.state_dict(), run.file(tmp_path).with_suffix(".pt"))
    loaded = digits.load(run, tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    train, test = printed(string.ascii_lowercase, 64, 20)
    expected: Any = digits.load(run, tmp_path)
    expected.reset_classifier(26)
    share = 100 * accuracy(expected, test, CPU, rounds=4)
    assert digits.fine_tune(run, tmp_path, train, test) == share
    learning = Run("vit", run.method, RECIPE)
    assert digits.fine_tune(learning, tmp_path, *uci_digits(320, 200)) != digits.fine_tune(
        run, tmp_path, *uci_digits(320, 200)
    )
    run.file(tmp_path).with_suffix(".pt").unlink()
    with pytest.raises(FileNotFoundError):
        digits.fine_tune(run, tmp_path, *uci_digits(64, 20))


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 6])
def test_a_small_table_after_training(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All columns of the rows of DeiT-S are measured, no others, and those of the paper follow."""
    from paper import main

    made = tmp_path / "table.md"
    options = ["--data", "digits", "--output", str(tmp_path), "--markdown", str(made), *TINY]
    assert main(["table", str(number), *options]) == 0
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in made.read_text().splitlines())
    count = {5: 4, 6: 6}[number]
    assert [name.startswith("paper: ") for name in head] == [False] * (1 + count) + [True] * (len(head) - 1 - count)
    assert [line[0] for line in lines if "–" not in line[1 : 1 + count]] == ["DeiT-S", "DeiT-S +TL-Align"]
    assert {cell for line in lines if "DeiT-S" not in line[0] for cell in line[1 : 1 + count]} == {"–"}
    for line in (line for line in lines if line[0].startswith("DeiT-S")):
        assert all(0.0 <= float(cell) <= (300.0 if number == 6 else 100.0) for cell in line[1 : 1 + count])
    assert "Small version: the ViT of Table 1" in capsys.readouterr().out
    assert {file.parent.parent.name for file in tmp_path.rglob("*.pt")} == (
        {"vit"} if number == 5 else {"vit", "convnext"}
    )
