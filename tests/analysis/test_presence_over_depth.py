"""Presence of input tokens over depth, against column sums of attention rollout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import slow_except
from rollout import mixing_matrices
from torch import nn
from twins.families import FAMILIES

from tlfx.analysis import presence
from tlfx.analysis.presence_over_depth import faded, input_cells, presence_over_depth
from tlfx.analysis.probe import Probe

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def test_columns_of_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum over the columns of all tokens, the class token beginning with all input tokens in the same amount."""
    monkeypatch.setattr(presence, "CHANNELS", 5)
    model = FAMILIES["vit"].model()
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))
    probe = Probe(model, image.shape)
    presences = presence_over_depth(probe, image)
    start = torch.cat((torch.full((1, 16), 1 / 16), torch.eye(16))).double()
    matrices = mixing_matrices(model, image[None])
    assert input_cells(probe) == (4, 4)
    assert len(presences) == len(matrices) + 1
    for p, matrix in zip(presences, matrices, strict=False):
        torch.testing.assert_close(p.double(), (matrix[0] @ start).mean(0) * 16, **CLOSE)
    torch.testing.assert_close(presences[-1].double(), (matrices[-1][0, 0] @ start) * 16, **CLOSE)
    assert presences[-1].std() > 0.05  # weights that choose, or this would compare ones with ones


@pytest.mark.parametrize("name", slow_except(("mixer", "resnet-basic"), ("swin", "mixer", "resnet-basic")))
def test_mean_is_one(name: str) -> None:
    """Contributions move, none is lost; and every input token starts with its own."""
    family = FAMILIES[name]
    image = torch.randn(3, family.size, family.size)
    for p in presence_over_depth(Probe(family.model(), image.shape), image):
        torch.testing.assert_close(p.mean(), torch.ones(()), **CLOSE)
        assert float(p.min()) >= 0


def test_more_tokens_than_cells() -> None:
    """Input tokens beyond 56 are taken together, cells differ in size, and all are wholly present at first."""
    model = nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(3, 3, 1), nn.AvgPool2d((60, 1)))
    probe = Probe(model, (3, 60, 4), ["1"])
    assert input_cells(probe) == (56, 4)
    for p in presence_over_depth(probe, torch.rand(3, 60, 4)):
        torch.testing.assert_close(p, torch.ones(224), **CLOSE)


def test_faded_tokens() -> None:
    """A stride leaves out every second column."""
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.MaxPool2d((1, 1), (1, 2)))
    p = presence_over_depth(Probe(model, (3, 4, 16)), torch.rand(3, 4, 16))[-1]
    torch.testing.assert_close(p.view(2, 8), torch.tensor([2.0, 0.0]).repeat(2, 4), **CLOSE)
    assert faded(p) == 0.5
