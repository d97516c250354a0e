"""timm's own test of the backward pass, with aligned models and a mixed target: small models of every kind."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

import tlfx
from tlfx.mix import CutMix

CLASSES, SIZE, LARGEST = 42, 128, 320
"""Logits, side of the images where a model allows it, and the largest side that is tested, as in timm."""
SMALL = timm.list_models(
    [
        *("test_*", "*atto*", "*femto*", "*pico*", "*nano*", "*tiny*", "*xxs*", "*_xs*", "*_b0*", "*_s0*", "*_m0*"),
        *("*_t0*", "*_035*", "*_050*", "*resnet10t", "*resnet18*", "*lcnet*", "*mobile*small*", "efficientnet_cc*"),
    ],
    exclude_filters=["*tiny*384", "*tiny*512", "*xs24*384", "*xxs*384", "*nano*384"],  # too large for timm's test
)


def input_size(name: str) -> tuple[int, ...]:
    """The size of images that timm tests a model with."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    channels, *sides = cfg.input_size
    if not cfg.fixed_input_size:
        least = max(cfg.min_input_size[1:]) if cfg.min_input_size else 0
        sides = [min(side, max(SIZE, least)) for side in sides]
    return channels, *sides


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    size = input_size(name)
    if max(size) > LARGEST:
        pytest.skip(f"fixed size {size} of images is larger than {LARGEST}")
    torch.manual_seed(0)
    model = tlfx.align(timm.create_model(name, num_classes=CLASSES)).train()
    images, target = CutMix(num_classes=CLASSES)(torch.randn(2, *size), torch.tensor([3, 7]))
    output, soft = model(images, target)
    outputs, softs = (x if isinstance(x, tuple) else (x,) for x in (output, soft))  # two of a distilled model
    torch.stack([F.cross_entropy(*pair) for pair in zip(outputs, softs, strict=True)]).sum().backward()
    for logits, rows in zip(outputs, softs, strict=True):
        assert logits.shape == rows.shape == (2, CLASSES)
        assert logits.isfinite().all()
        torch.testing.assert_close(rows.sum(1), torch.ones(2))
    assert [path for path, p in model.named_parameters() if p.grad is None] == []
