"""Attacks of `examples/evaluate.py` on a linear classifier, whose robust images are known exactly."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

SIDE, COUNT = 8, 40
DUAL = {"Linf": 1.0, "L2": 2.0, "L1": float("inf")}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTORY = f"""
from torch import nn


def build(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear({3 * SIDE * SIDE}, classes))
"""


class Case:
    """A linear classifier of pictures of 8×8 pixels far from black and white, so that no pixel is clipped."""

    def __init__(self, folder: Path, classes: int) -> None:
        draw = np.random.default_rng(0)
        pixels = draw.integers(90, 166, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * SIDE * SIDE, classes)
        self.images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        # Some pictures are labelled wrong, so that accuracy without attack is below 100 %.
        labels = self.logits(self.images).argmax(1)
        labels[::8] = (labels[::8] + 1) % classes
        self.labels = labels
        for number, (picture, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            (folder / "images" / f"class{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / "images" / f"class{label}" / f"{number}.png")
        assert len(list((folder / "images").iterdir())) == classes
        (folder / "linear_factory.py").write_text(FACTORY)
        torch.save({f"1.{name}": value for name, value in self.linear.state_dict().items()}, folder / "linear.pth")
        base = [
            "--model",
            "linear_factory:build",
            "--path",
            folder,
            "--kwargs",
            json.dumps({"classes": classes}),
            "--checkpoint",
            folder / "linear.pth",
        ]
        base += ["--data-dir", folder / "images", "--dataset", "folder", "--img-size", SIDE, "--crop-pct", "1"]
        self.arguments = [*map(str, base), "--workers", "0", "--device", "cpu", "--batch-size", "64"]

    def logits(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
        logits: Tensor = self.linear(((images - mean) / std).flatten(1))
        return logits.detach()

    def slack(self, dual: float) -> Tensor:
        """The smallest perturbation (B,) that changes a right prediction: margin over the dual norm of its gradient."""
        std = torch.tensor(STD).repeat_interleave(SIDE * SIDE)
        weight, logits = self.linear.weight.detach() / std, self.logits(self.images)
        rows = torch.arange(COUNT)
        margin = logits[rows, self.labels].unsqueeze(1) - logits
        size = torch.linalg.vector_norm(weight[self.labels].unsqueeze(1) - weight, dual, dim=2)
        distance = margin / size.clamp(min=1e-12)
        distance[rows, self.labels] = torch.inf
        return distance.amin(1)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("linear"), classes=5)


@pytest.fixture(scope="module")
def case_of_two(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two classes, where the gradient of the cross-entropy has one direction only: the shortest way out."""
    return Case(tmp_path_factory.mktemp("linear_of_two"), classes=2)


def eps_between(slack: Tensor, share: float) -> float:
    """A bound in the middle of the widest gap near the quantile, far from where rounding decides."""
    values = slack[slack > 0].sort().values
    start = int(share * len(values))
    gaps = values[start + 1 : start + 8] - values[start : start + 7]
    place = start + int(gaps.argmax())
    return float(values[place] + values[place + 1]) / 2


def run(case: Case, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    from evaluate import main

    assert main([*case.arguments, *arguments, "--json", str(tmp_path / "figures.json")]) == 0
    figures: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    return figures


def check_margins(case: Case, tmp_path: Path, attack: str, norm: str, eps: float) -> None:
    """Right under attack are the images whose margin is beyond the bound, and no others."""
    slack = case.slack(DUAL[norm])
    figures = run(case, tmp_path, "--attack", attack, "--norm", norm, "--eps", str(eps), "--steps", "40")
    assert figures["top1"] == pytest.approx(100 * float((slack > 0).float().mean()))
    assert figures["attack"]["top1"] == pytest.approx(100 * float((slack > eps).float().mean()))
    assert figures["attack"]["top1"] < figures["top1"] < 100
    assert 0 < figures["attack"]["perturbation"] <= eps * (1 + 1e-4)
    assert figures["attack"]["images"] == figures["images"] == COUNT
    assert (figures["attack"]["name"], figures["attack"]["norm"], figures["attack"]["eps"]) == (attack, norm, eps)
    assert figures["attack"].get("steps") == (40 if attack == "pgd" else None)


@pytest.mark.parametrize(("attack", "norm"), [("apgd-t", "Linf"), pytest.param("fab-t", "L2", marks=pytest.mark.slow)])
def test_targeted_attacks_find_every_way_out(attack: str, norm: str, case: Case, tmp_path: Path) -> None:
    check_margins(case, tmp_path, attack, norm, eps_between(case.slack(DUAL[norm]), 0.4))


def test_no_image_withstands_autoattack_beyond_the_largest_margin(case: Case, tmp_path: Path) -> None:
    check_margins(case, tmp_path, "autoattack", "Linf", 1.02 * float(case.slack(1.0).max()))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_autoattack(norm: str, case: Case, tmp_path: Path) -> None:
    check_margins(case, tmp_path, "autoattack", norm, eps_between(case.slack(DUAL[norm]), 0.4))


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        ("apgd-ce", "Linf"),
        pytest.param("apgd-ce", "L1", marks=pytest.mark.slow),
        ("pgd", "Linf"),
        ("pgd", "L2"),
        ("fgsm", "Linf"),
    ],
)
def test_attacks_on_the_cross_entropy(attack: str, norm: str, case_of_two: Case, tmp_path: Path) -> None:
    if attack in ("pgd", "fgsm"):
        pytest.importorskip("torchattack")  # which Python 3.14 has not yet
    check_margins(case_of_two, tmp_path, attack, norm, eps_between(case_of_two.slack(DUAL[norm]), 0.4))


def test_fgsm_is_one_step_of_the_gradients_sign(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchattack")  # which Python 3.14 has not yet
    std = torch.tensor(STD).repeat_interleave(SIDE * SIDE)
    weight = case.linear.weight.detach() / std
    probabilities = case.logits(case.images).softmax(1)
    probabilities[torch.arange(COUNT), case.labels] -= 1
    step = (probabilities @ weight).sign().view_as(case.images)
    changed = case.logits(case.images + 2 / 255 * step).argmax(1)
    clean = case.logits(case.images).argmax(1) == case.labels
    figures = run(case, tmp_path, "--attack", "fgsm", "--eps", "2/255")
    assert figures["attack"]["top1"] == pytest.approx(100 * float((clean & (changed == case.labels)).float().mean()))
    assert figures["attack"]["perturbation"] == pytest.approx(2 / 255, rel=1e-4)
    shown = capsys.readouterr().out
    assert "fgsm Linf 2/255" in shown


def test_square_stays_in_its_bound(case: Case, tmp_path: Path) -> None:
    slack = case.slack(1.0)
    figures = run(case, tmp_path, "--attack", "square", "--eps", "8/255", "--images", "6")  # all fall at once
    assert figures["attack"]["images"] == 6
    assert figures["attack"]["top1"] <= figures["top1"]
    assert figures["attack"]["perturbation"] <= 8 / 255 + 1e-6
    assert float(slack.max()) < 8 / 255


def refused(case: Case, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    from evaluate import main

    assert main([*case.arguments, *arguments]) == 2
    return capsys.readouterr().err


def test_norms_and_classes_that_an_attack_cannot_have(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(case, capsys, "--attack", "fgsm", "--norm", "L2", "--eps", "1")
    assert "--attack fgsm does not support --norm L2; expected Linf" in said
    said = refused(case, capsys, "--attack", "pgd", "--norm", "L1", "--eps", "1")
    assert "--attack pgd does not support --norm L1; expected Linf or L2" in said
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / name / "0.png")
    arguments = ("--data-dir", str(tmp_path), "--attack")
    said = refused(case, capsys, *arguments, "autoattack")
    assert "--attack autoattack needs at least 4 classes, but there are 3; use apgd-ce, square or pgd" in said
    for name in ("b", "c"):
        shutil.rmtree(tmp_path / name)
    assert "--attack pgd needs at least 2 classes, but there are 1" in refused(case, capsys, *arguments, "pgd")


def test_attacks_that_are_not_installed(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, package in (("autoattack", "pyautoattack"), ("fgsm", "torchattack")):
        monkeypatch.setitem(sys.modules, package, None)
        said = refused(case, capsys, "--attack", name)
        assert f"--attack {name} needs a package: pip install {package} " in said


def test_logits_that_are_no_classes_of_the_folder(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "only").mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "only" / "0.png")
    said = refused(case, capsys, "--data-dir", str(tmp_path))
    assert "the model returns (1, 5), expected (B, 1), one logit per class" in said


def moved(images: Tensor, labels: Tensor, by: float) -> Tensor:
    return images + by


def test_a_perturbation_out_of_bounds_is_no_figure(case: Case) -> None:
    from evaluation.attacks import Threat, robustness
    from evaluation.classifier import Classifier
    from evaluation.folders import Classes

    model = nn.Sequential(nn.Flatten(), case.linear)
    classifier = Classifier(model, Classes({}, 5, ""), MEAN, STD)
    threat = Threat("pgd", "Linf", 1 / 255, seed=0)
    batches = [((255 * case.images).round().to(torch.uint8), case.labels)]
    for change, words in ((0.01, "Linf norm 0.010000"), (0.9, "pixels ")):
        with pytest.raises(RuntimeError, match=words):
            robustness(partial(moved, by=change), threat, classifier, batches, torch.device("cpu"))
