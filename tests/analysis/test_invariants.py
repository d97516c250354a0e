"""The invariants as a test of models: sound ones pass, and each way of being wrong is caught."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tlfx import TlfxError
from tlfx.analysis.figures import INVARIANTS, Figures
from tlfx.analysis.invariants import measure, rectangles
from tlfx.capture.state.snapshot import Change
from tlfx.propagate.labels import Operand
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules.registry import REGISTRY
from tlfx.runtime import label_arithmetic

SIZE = (3, 8, 8)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 5)
    )


class CountsItsCalls(nn.Module):
    """State outside of Python's objects: a graph has the count of the moment it was captured."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: Tensor) -> Tensor:
        os.environ["TLFX_CALLS"] = str(int(os.environ["TLFX_CALLS"]) + 1)
        return self.net(images) / int(os.environ["TLFX_CALLS"])


class NotesItsShape(nn.Module):
    """An attribute that a wrong capture would not set."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, images: Tensor) -> Tensor:
        self.size = images.shape
        return self.net(images)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 2, 2)

    def forward(self, images: Tensor) -> dict[str, Any]:
        x = self.stem(images)
        return {"map": x, "logits": x.mean((2, 3)), "aux": None}


@pytest.fixture
def break_relu() -> Iterator[Any]:
    """A wrong rule for ReLU: its labels go through a function."""

    def apply(function: Any) -> None:
        def wrong(op: OpContext, x: Value) -> Value:
            rows = op.label(label_arithmetic(function), Operand(x.ids.flatten()), shape=(x.ids.numel(),))
            return op.from_ids(rows.view_as(x.ids), x.batch_axis)

        REGISTRY.add(torch.ops.aten.relu, wrong, override=True)

    with REGISTRY.restored():
        yield apply


def broken(figures: Figures) -> set[str]:
    return {i.name for i in INVARIANTS if not figures.holds(i)}


@pytest.mark.parametrize("make", [network, TwoOutputs, lambda: nn.AdaptiveAvgPool2d(2)])
def test_sound_models_pass(make: Any) -> None:
    figures = measure(make(), SIZE)
    assert figures.passed, figures
    assert broken(figures) == set()
    assert figures.worst_exact() == 0.0
    assert figures.worst_label() < 1e-6


def test_the_model_and_the_random_state_stay() -> None:
    model = network().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    measure(model, SIZE)
    assert type(model) is nn.Sequential
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attributes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken(measure(NotesItsShape(), SIZE)) == set()
    monkeypatch.setattr(Change, "put", lambda change, computed: None)
    assert broken(measure(NotesItsShape(), SIZE)) == {"buffers"}


def test_hidden_state_breaks_outputs_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLFX_CALLS", "1")
    assert {"logits", "gradients"} <= broken(measure(CountsItsCalls(), SIZE))


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (lambda rows: rows.square(), {"constant", "swap", "linearity"}),
        (lambda rows: rows * 2, {"constant", "bounds", "swap"}),
        pytest.param(lambda rows: rows / 2, {"constant", "swap"}, marks=pytest.mark.slow),
        (lambda rows: rows.mean(0, keepdim=True).expand_as(rows), {"independence"}),
        (lambda rows: rows[:1].expand_as(rows), {"permutation"}),
    ],
    ids=["square", "double", "half", "shared", "first"],
)
def test_wrong_arithmetic_is_caught(wrong: Any, caught: set[str], break_relu: Any) -> None:
    break_relu(wrong)
    violated = broken(measure(network(), SIZE))
    assert caught <= violated, violated
    assert not violated & {"logits", "gradients", "buffers"}


def test_a_model_that_fails_by_itself() -> None:
    with pytest.raises(TlfxError, match=r"Sequential fails by itself on images of shape \(3, 1, 8, 8\): RuntimeError"):
        measure(network(), (1, 8, 8))


def test_rectangles_hold_both_images() -> None:
    masks = rectangles(8, (16, 16), seed=0)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert all(0 < m.mean() < 1 for m in masks)
    assert torch.equal(masks, rectangles(8, (16, 16), seed=0))
