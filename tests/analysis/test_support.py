"""Support: labels that come from other pixels than the output depends on are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import vit
from torch import Tensor, nn

import tlfx
from tlfx.analysis.support import measure_support
from tlfx.propagate import OpContext, Value

SIZE = (3, 16, 16)


class Gated(nn.Module):
    """Each position depends on all pixels through a gate, and on its own by content."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Late(nn.Module):
    """A branch that begins at zero: it has half of the label, and no influence yet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, padding=1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.mix(x)


CONVOLUTIONS = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


@pytest.mark.parametrize("model", [vit(), Late(), CONVOLUTIONS])
def test_sound_models(model: nn.Module) -> None:
    support = measure_support(model, SIZE)
    assert support.extra <= 1e-6
    assert support.missing == 0


def test_gates_have_no_label() -> None:
    support = measure_support(Gated(), SIZE)
    assert support.extra <= 1e-6
    assert support.missing > 0.8


def test_labels_from_other_pixels() -> None:
    rules: dict[Any, Any] = {torch.ops.aten.relu: lambda op, x: op.step(x.shape).spread(x, [2, 3])}
    with tlfx.use_rules(rules, override=True):
        support = measure_support(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()), SIZE)
    assert support.extra > 0.9


def test_labels_that_are_lost() -> None:
    def centre(op: OpContext, x: Value, *arguments: Any) -> Value:
        return op.pointwise(x)

    with tlfx.use_rules({torch.ops.aten.conv2d: centre}, override=True):
        support = measure_support(nn.Sequential(nn.Conv2d(3, 3, 5, padding=2)), SIZE)
    assert support.extra <= 1e-6
    assert support.missing > 0.3


def test_the_model_and_the_random_state_stay() -> None:
    model = vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_support(model, SIZE, seed=3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
