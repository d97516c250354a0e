"""User code and Hugging Face's ViT against slow twins written from the paper."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import product

import pytest
import torch
from helpers import CLASSES, slow_except
from test_twins import TOLERANCE, check, inputs, soft_rows
from torch import Tensor, nn
from twins import user_code
from twins.families import Family, randomise

import tlfx
from models.catalogue import CATALOGUE


class Logits(nn.Module):
    """The logits alone of a model that returns more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def family(name: str, twin: Callable[..., Tensor], wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> Family:
    """A model of the catalogue and its twin."""
    return Family(lambda: wrap(CATALOGUE[name].model()), twin, 32)


MULTI_HEAD = [name for name in CATALOGUE if "MultiheadAttention, weights" in name]
FAMILIES = {
    "EViT": family("user code: EViT, tokens dropped", user_code.evit),
    "EViT, fused": family("user code: EViT, the rest fused", user_code.evit),
    "ToMe": family("user code: ToMe, by size", user_code.tome),
    "ToMe, by mean": family("user code: ToMe, by mean", user_code.tome),
    "GFNet": family("torch: GFNet, one token read", user_code.global_filter),
    "HF ViT": family("transformers: ViT", user_code.huggingface, Logits),
    "HF ViT, written out": family("transformers: ViT, attention written out", user_code.huggingface, Logits),
    **{name: family(name, user_code.multihead) for name in MULTI_HEAD},
}


EVERY_RUN = [("EViT", True), ("GFNet", False), (MULTI_HEAD[-1], False)]
"""Kinds of models in training or evaluation; the others are tested by ``make slow``."""


@pytest.mark.parametrize(("name", "training"), slow_except(EVERY_RUN, product(FAMILIES, (True, False))))
def test_equals_twin(name: str, training: bool) -> None:
    plain = FAMILIES[name].model().train(training)
    aligned = tlfx.align(deepcopy(plain))
    check(aligned, plain, FAMILIES[name], batch=3)
    check(aligned, plain, FAMILIES[name], batch=5)


@pytest.mark.parametrize("name", slow_except(MULTI_HEAD[:1], MULTI_HEAD))
def test_the_fused_path_of_inference(name: str) -> None:
    """Without gradients PyTorch fuses the layer, which cannot be captured: the same labels, logits up to rounding."""
    plain = FAMILIES[name].model().eval()
    aligned = tlfx.align(deepcopy(plain))
    images, mixed = inputs(3, 32)
    with torch.no_grad():
        logits, soft = aligned(images, mixed)
        torch.testing.assert_close(logits, plain(images), rtol=0.0, atol=1e-5)
    expected = user_code.multihead(plain, images, mixed["mask"])
    torch.testing.assert_close(soft, soft_rows(expected, mixed["first"], mixed["second"], CLASSES), **TOLERANCE)


def test_the_twins_depend_on_the_weights() -> None:
    """Another model of the same kind has other labels: no twin is a mere mean."""
    images, mixed = inputs(3, 32)
    for one in FAMILIES.values():
        model = one.model().eval()
        share = one.twin(model, images, mixed["mask"])
        torch.manual_seed(1)
        other = randomise(model)
        assert (one.twin(other, images, mixed["mask"]) - share).abs().max() > 1e-4
