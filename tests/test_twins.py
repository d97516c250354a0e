"""The engine against slow twins written from the paper, and against the figures of the official code."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from helpers import CLASSES, slow_except
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import one_hot
from twins import vit
from twins.families import FAMILIES, FULL_SIZE, Family
from twins.golden import golden

import tlfx

TOLERANCE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-6}
SIDE = 32
BATCH = 3


def rectangles(batch: int, size: int, seed: int = 0) -> Tensor:
    """CutMix masks whose edges fall inside patches, (B, 1, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 1, size, size)
    for sample in mask:
        top, left = torch.randint(1, size // 2, (2,), generator=generator).tolist()
        height, width = torch.randint(size // 8, size // 2, (2,), generator=generator).tolist()
        sample[:, top : top + height, left : left + width] = 0.0
    return mask


def inputs(batch: int, size: int, seed: int = 0) -> tuple[Tensor, tlfx.MixedTarget]:
    """Random images and a mixed target for them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator)
    return images, target(rectangles(batch, size, seed))


def target(mask: Tensor) -> tlfx.MixedTarget:
    """Two labels a sample, one pair of them equal."""
    first = torch.arange(len(mask)) % CLASSES
    second = (first * 2) % CLASSES
    return tlfx.MixedTarget(first=first, second=second, mask=mask, num_classes=CLASSES, smoothing=0.0)


def soft_rows(share: Tensor, first: Tensor, second: Tensor, classes: int) -> Tensor:
    """share · onehot(first) + (1 − share) · onehot(second)."""
    share = share[:, None]
    return (share * one_hot(first, classes) + (1 - share) * one_hot(second, classes)).float()


def check(aligned: nn.Module, plain: nn.Module, family: Family, batch: int) -> None:
    """One aligned call against the twin's share and the plain model's logits, bit for bit, with the same seed."""
    images, mixed = inputs(batch, family.size, seed=batch)
    expected = family.twin(deepcopy(plain), images, mixed["mask"])
    torch.manual_seed(7)
    plain_logits = plain(images)
    torch.manual_seed(7)
    logits, soft = aligned(images, mixed)
    assert torch.equal(logits, plain_logits)
    assert soft.dtype == torch.float32
    assert not soft.requires_grad
    torch.testing.assert_close(soft, soft_rows(expected, mixed["first"], mixed["second"], CLASSES), **TOLERANCE)


EVERY_RUN = [*product(("vit", "swin", "mixer"), [True]), ("resnet-basic", False)]
"""A model of attention, of token MLPs and of convolution, in training or evaluation; ``make slow`` tests the others."""


@pytest.mark.parametrize(("name", "training"), slow_except(EVERY_RUN, product(FAMILIES, (True, False))))
def test_engine_equals_twin(name: str, training: bool) -> None:
    family = FAMILIES[name]
    plain = family.model().train(training)
    aligned = tlfx.align(deepcopy(plain))
    check(aligned, plain, family, batch=BATCH)
    check(aligned, plain, family, batch=BATCH + 2)
    for kept, own in zip(plain.buffers(), aligned.buffers(), strict=True):
        assert torch.equal(kept, own)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_engine_equals_twin_at_full_size(name: str) -> None:
    family = FULL_SIZE[name]
    plain = family.model().train()
    check(tlfx.align(deepcopy(plain)), plain, family, batch=2)


def test_golden() -> None:
    case = golden()
    plain = case.model.train()
    mixed = tlfx.MixedTarget(
        first=case.first, second=case.second, mask=case.mask, num_classes=case.num_classes, smoothing=0.0
    )
    logits, soft = tlfx.align(deepcopy(plain))(case.images, mixed)
    assert torch.equal(logits, plain(case.images))
    torch.testing.assert_close(soft, case.aligned, **TOLERANCE)


def test_twin_equals_golden() -> None:
    case = golden()
    share = vit.aligned_share(case.model, case.images, case.mask)
    torch.testing.assert_close(case.mask.mean((1, 2, 3)), case.area_share)
    torch.testing.assert_close(case.model(case.images)[:, :4], case.logits_head, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(soft_rows(share, case.first, case.second, case.num_classes), case.aligned, **TOLERANCE)


@pytest.mark.parametrize("name", slow_except([name for name, _ in EVERY_RUN], FAMILIES))
def test_twin_is_a_convex_combination(name: str) -> None:
    family = FAMILIES[name]
    model = family.model().eval()
    images, mixed = inputs(BATCH, family.size)
    mask = mixed["mask"]
    share = family.twin(model, images, mask)
    exact: dict[str, Any] = {"rtol": 0.0, "atol": 1e-9}
    torch.testing.assert_close(family.twin(model, images, 1 - mask), 1 - share, **exact)
    torch.testing.assert_close(family.twin(model, images, mask * 0.5 + 0.25), share * 0.5 + 0.25, **exact)
    assert (share - mask.double().mean((1, 2, 3))).abs().max() > 1e-3


@pytest.fixture(scope="module")
def small_vit() -> tuple[nn.Module, nn.Module]:
    """One model, aligned and plain, for many masks."""
    plain = FAMILIES["vit"].model().train()
    return tlfx.align(deepcopy(plain)), plain


EDGE = st.integers(0, SIDE)
CORNERS = st.tuples(EDGE, EDGE, EDGE, EDGE, st.floats(0, 1, width=32))


@settings(max_examples=30, deadline=None)
@given(boxes=st.lists(CORNERS, min_size=1, max_size=6))
def test_any_mask(small_vit: tuple[nn.Module, nn.Module], boxes: list[tuple[int, int, int, int, float]]) -> None:
    aligned, plain = small_vit
    mask = torch.ones(len(boxes), 1, SIDE, SIDE)
    for sample, (top, bottom, left, right, inside) in zip(mask, boxes, strict=True):
        sample[:, min(top, bottom) : max(top, bottom), min(left, right) : max(left, right)] = inside
    images, mixed = inputs(len(boxes), SIDE)[0], target(mask)
    _, soft = aligned(images, mixed)
    expected = vit.aligned_share(plain, images, mask)
    torch.testing.assert_close(soft, soft_rows(expected, mixed["first"], mixed["second"], CLASSES), **TOLERANCE)
