"""Fidelity where the truth is known exactly, against the aligned model itself, and as a table."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import hooks_of
from rich.console import Console
from torch import Tensor, nn

import tlfx
from tlfx.aligned import planner_of
from tlfx.analysis import Fidelity, fidelity
from tlfx.analysis.agreement import agreement
from tlfx.analysis.label_fidelity import POLICIES
from tlfx.analysis.reference import REFERENCES
from tlfx.mix import MixedTarget, Mixup, ShareTarget
from tlfx.policy import parse_policy, policy_name

SIDE, CLASSES = 16, 3
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
BALANCED = torch.tensor([0, 1, 2, 0, 1, 2])
COLOURS = torch.eye(CLASSES)[:, :, None, None].expand(-1, -1, SIDE, SIDE)


class Mean(nn.Module):
    """Logits are the mean colour of the picture from a column on."""

    def __init__(self, first_column: int = 0) -> None:
        super().__init__()
        self.first_column = first_column
        self.head = nn.Linear(CLASSES, CLASSES, bias=False)
        self.head.weight.data = torch.eye(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[..., self.first_column :].mean((2, 3)))


CHECKED = (tlfx.Policy(), tlfx.Policy(residual="norm"), tlfx.Policy(heads="norm"))


def scaled_vit() -> nn.Module:
    """Two blocks on 4×4 tokens, with LayerScale."""
    model = helpers.vit(init_values=0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)  # attention that picks some tokens
    return model


def batches(*sizes: int) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    for size in sizes:
        yield torch.randn(size, 3, SIDE, SIDE, generator=draw), LABELS[:size]


def of(measured: Fidelity, rule: str) -> dict[str, Any]:
    return {row.reference: row.agreement for row in measured.rows if row.rule == rule}


@pytest.fixture(scope="module")
def vit_fidelity() -> Fidelity:
    np.random.seed(0)
    return fidelity(scaled_vit(), batches(8, 6, 8))


def test_area_is_the_truth_of_a_mean() -> None:
    np.random.seed(0)
    result = fidelity(Mean(), [(COLOURS[BALANCED], BALANCED)] * 3, policies=[tlfx.Policy()])
    assert list(result.references) == list(REFERENCES)
    for rule in ("area", "paper"):
        similar, *others = of(result, rule).values()
        assert similar.correlation > 0.99  # its softmax is not linear, and stays between 0.12 and 0.88
        for reached in others:
            assert reached.pairs >= 12
            assert reached.correlation == pytest.approx(1)
            assert (reached.slope, reached.intercept) == pytest.approx((1, 0), abs=1e-5)
            assert (reached.rmse, reached.calibration_error) == pytest.approx((0, 0), abs=1e-5)
            assert math.isnan(reached.partial)  # nothing is left that the area does not tell
    assert result.same_as("area") is None


def test_aligned_is_the_truth_of_a_model_that_looks_at_a_part() -> None:
    np.random.seed(0)
    result = fidelity(Mean(first_column=5), [(COLOURS[BALANCED], BALANCED)] * 3, policies=[tlfx.Policy()])
    for reached in list(of(result, "paper").values())[1:]:
        assert reached.pairs >= 12
        assert (reached.correlation, reached.slope) == pytest.approx((1, 1), abs=1e-5)
        assert reached.partial == pytest.approx(1, abs=1e-4)
        assert reached.rmse == pytest.approx(0, abs=1e-5)
    assert all(reached.rmse > 0.02 for reached in of(result, "area").values())


def test_shares_are_those_of_the_aligned_model(vit_fidelity: Fidelity) -> None:
    np.random.seed(0)
    mix = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, mode="elem", label_smoothing=0.0, num_classes=CLASSES)
    mixed = [mix(*batch) for batch in batches(8, 6, 8)]
    areas = [target.mask.mean((1, 2, 3)) for _, target in mixed]
    kept = [(t.first != t.second) & (a > 0) & (a < 1) for (_, t), a in zip(mixed, areas, strict=True)]
    expected = {"area": torch.cat([area[rows] for area, rows in zip(areas, kept, strict=True)])}
    for policy in CHECKED:
        model = tlfx.align(scaled_vit().eval(), policy=policy)
        parts = []
        for (images, target), rows in zip(mixed, kept, strict=True):
            zeros = torch.zeros_like(target.first)
            _, soft = model(images, ShareTarget(target, first=zeros, second=zeros + 1, num_classes=2))
            parts.append(soft[rows, 0])
        expected[policy_name(policy)] = torch.cat(parts)
    assert list(vit_fidelity.shares) == ["area", *map(policy_name, POLICIES)]
    for name, shares in expected.items():
        torch.testing.assert_close(vit_fidelity.shares[name], shares, rtol=0, atol=1e-6)
    assert not torch.allclose(expected["paper"], expected["residual=norm"], atol=1e-3)
    assert all(len(x) == len(vit_fidelity.shares["area"]) for x in vit_fidelity.references.values())


def test_policies_are_the_paper_and_each_alternative() -> None:
    names = [policy_name(p) for p in POLICIES]
    assert names[0] == "paper"
    assert set(names[1:]) == {
        *("residual=skip", "residual=norm", "residual=gated", "heads=norm", "weights=signed", "aggregation=weighted"),
        *("values=norm", "values=deviation", "residual=norm, values=norm", "residual=norm, values=deviation"),
    }
    assert [parse_policy(name) for name in names] == list(POLICIES)


@pytest.mark.parametrize("text", ["", "residual", "depth=2", "residual=norm,residual=skip", "paper,heads=norm"])
def test_texts_that_are_no_policy(text: str) -> None:
    with pytest.raises(tlfx.InputError, match=r"is not a policy: expected 'paper', 'influence' or FIELD=VALUE"):
        parse_policy(text)


def test_the_model_is_left_as_it_was() -> None:
    model = tlfx.align(scaled_vit(), policy=tlfx.Policy(residual="skip"), layers=["blocks.0"]).train()
    model.blocks[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    np.random.seed(0)
    result = fidelity(model, batches(8), policies=[tlfx.Policy(), tlfx.Policy(residual="skip")])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not hooks_of(model)
    np.random.seed(0)
    whole = fidelity(scaled_vit(), batches(8), policies=[tlfx.Policy()])  # the options of an aligned model hold
    assert not torch.allclose(result.shares["paper"], whole.shares["paper"], atol=1e-4)
    torch.testing.assert_close(result.references["exchange"], whole.references["exchange"], equal_nan=True)
    assert planner_of(model).options.policy == tlfx.Policy(residual="skip")
    assert not planner_of(model).plans


def test_modes_come_back_after_an_error() -> None:
    model = scaled_vit().train()
    with pytest.raises(tlfx.InputError):
        fidelity(model, [])
    assert all(m.training for m in model.modules())


def test_rows_and_csv(vit_fidelity: Fidelity) -> None:
    assert [(r.reference, r.rule) for r in vit_fidelity.rows] == [
        (a, b) for a in vit_fidelity.references for b in vit_fidelity.shares
    ]
    lines = list(csv.DictReader(io.StringIO(vit_fidelity.csv())))
    assert len(lines) == len(vit_fidelity.rows) == len(REFERENCES) * (1 + len(POLICIES))
    for line, row in zip(lines, vit_fidelity.rows, strict=True):
        expected = agreement(
            vit_fidelity.shares[row.rule], vit_fidelity.references[row.reference], vit_fidelity.shares["area"]
        )
        assert (line["reference"], line["rule"], int(line["pairs"])) == (row.reference, row.rule, expected.pairs)
        for name in ("correlation", "partial", "rmse", "slope", "intercept", "calibration_error"):
            value = getattr(expected, name)
            assert float(line[name] or "nan") == pytest.approx(value, abs=1e-6, nan_ok=True)
        # softmax attention has no weights of either sign, and is all that mixes the tokens of this model
        same = {"weights=signed": "paper", "values=norm": "heads=norm"}.get(row.rule, "")
        assert line["same_as"] == same


def test_the_table(vit_fidelity: Fidelity) -> None:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(vit_fidelity)
    shown = console.export_text()
    for reference, title in REFERENCES.items():
        assert f"{title} · {of(vit_fidelity, 'paper')[reference].pairs} pairs" in shown
    area = next(line for line in shown.splitlines() if line.split()[:1] == ["area"])
    first = vit_fidelity.rows[0].agreement
    assert area.split()[1:4] == [f"{first.correlation:.3f}", "–", f"{first.rmse:.3f}"]
    signed = [line.split() for line in shown.splitlines() if "weights=signed" in line]
    assert signed == [["weights=signed", "as", "paper"]] * len(REFERENCES)


def rolled(images: Tensor, labels: Tensor) -> tuple[Tensor, MixedTarget]:
    """Mixes with the image before."""
    mask = torch.full((len(images), 1, SIDE, SIDE), 0.5)
    target = MixedTarget(first=labels, second=labels.roll(1), mask=mask, num_classes=CLASSES)
    return 0.5 * images + 0.5 * images.roll(1, 0), target


class Dense(nn.Module):
    """Logits for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


PICTURES = torch.rand(6, 3, SIDE, SIDE)
ERRORS: dict[str, tuple[Callable[[], Fidelity], type[Exception], str]] = {
    "no batch": (
        lambda: fidelity(Mean(), []),
        tlfx.InputError,
        "^0 batches gave no mixed pair of two classes, expected at least one: shuffle a loader whose batches have",
    ),
    "one class": (
        lambda: fidelity(Mean(), [(PICTURES, BALANCED * 0)], policies=[tlfx.Policy()]),
        tlfx.InputError,
        "^1 batches gave no mixed pair of two classes",
    ),
    "no mixing": (
        lambda: fidelity(Mean(), [(PICTURES, BALANCED)], mixer=Mixup(prob=0.0, num_classes=3), policies=POLICIES[:1]),
        tlfx.InputError,
        "enable mixing in the mixer, and pass an unexhausted loader",
    ),
    "no model": (lambda: fidelity("vit", []), tlfx.InputError, "fidelity takes a torch.nn.Module, got a str"),  # type: ignore[arg-type]
    "no labels": (
        lambda: fidelity(Mean(), [PICTURES]),  # type: ignore[list-item]
        tlfx.InputError,
        r"the loader yielded a Tensor, expected two tensors \(images, labels\)",
    ),
    "images of bytes": (
        lambda: fidelity(Mean(), [((PICTURES * 255).byte(), BALANCED)]),
        tlfx.InputError,
        r"images have dtype torch.uint8, expected a floating type: use images.float\(\) / 255",
    ),
    "soft labels": (
        lambda: fidelity(Mean(), [(PICTURES, torch.eye(6)[:, :3])]),
        tlfx.TargetError,
        r"labels are torch.float32 of shape \(6, 3\), expected int64 \(batch,\), .* use labels.argmax\(1\) for soft",
    ),
    "unknown class": (
        lambda: fidelity(Mean(), [(PICTURES, BALANCED + 1)]),
        tlfx.TargetError,
        "labels holds labels from 1 to 3, expected 0 to 2; check the labels",
    ),
    "odd batch": (
        lambda: fidelity(Mean(), [(PICTURES[:5], BALANCED[:5])]),
        tlfx.InputError,
        "a batch of 5 images cannot be mixed in pairs",
    ),
    "another pairing": (
        lambda: fidelity(Mean(), [(PICTURES, BALANCED)], mixer=rolled),
        tlfx.InputError,
        "function does not mix image i with image B − 1 − i by its mask, expected a mixer that does: tlfx.mix.Mixup",
    ),
    "dense": (
        lambda: fidelity(Dense(), [(PICTURES, BALANCED)]),
        tlfx.InputError,
        r"the model returns shape \(6, 3, 4, 4\) for 6 images, expected logits \(batch, classes\): wrap it in a module",
    ),
    "no policy": (
        lambda: fidelity(Mean(), [], policies=[]),
        tlfx.InputError,
        r"policies=\[\]: expected a list of tlfx.Policy, such as \[tlfx.Policy\(\)\]",
    ),
    "policies by name": (
        lambda: fidelity(Mean(), [], policies=["skip"]),  # type: ignore[list-item]
        tlfx.InputError,
        "'skip' is not a policy: expected 'paper', 'influence' or FIELD=VALUE",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    call, error, words = ERRORS[case]
    with pytest.raises(error, match=words):
        call()


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tlfx, tlfx.analysis; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
