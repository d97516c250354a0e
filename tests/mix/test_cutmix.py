"""`tlfx.mix.CutMix` and `MixUp` against their papers' formulas and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import CLASSES, batch, numbered, seeded, shaped
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2  # type: ignore[import-untyped]

from tlfx.mix import CutMix, MixUp
from tlfx.mix.draws import Draws


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 1.0, 4.0]), st.integers(1, 15), st.integers(1, 15))
def test_the_box_has_the_area_that_was_drawn(seed: int, alpha: float, height: int, width: int) -> None:
    masks = CutMix(alpha=alpha, generator=seeded(seed)).masks(shaped(5, height, width))
    draws = Draws(seeded(seed))
    lams, rows, columns = draws.shares(alpha, 5)[:, 0], draws.below(height, 5), draws.below(width, 5)
    for mask, lam, row, column in zip(masks, lams, rows.tolist(), columns.tolist(), strict=True):
        side = float((1.0 - lam).sqrt())
        high, wide = int(np.float32(side) * np.float32(height)), int(np.float32(side) * np.float32(width))
        inside = [
            [row - high // 2 <= y < row - high // 2 + high and column - wide // 2 <= x < column - wide // 2 + wide
             for x in range(width)]
            for y in range(height)
        ]  # fmt: skip
        assert torch.equal(mask[0], 1.0 - torch.tensor(inside).float())


@pytest.mark.slow
def test_shares_and_places_are_spread_as_those_of_torchvision() -> None:
    """λ and the frequency with which each pixel is replaced, over many draws."""
    torch.manual_seed(0)
    count, images, labels = 4000, *numbered(2, 9, 12)
    theirs = torch.stack([v2.CutMix(alpha=1.0, num_classes=2)(images, labels)[0][0, 0] for _ in range(count)])
    ours = 1.0 - CutMix(generator=seeded()).masks(shaped(count, 9, 12))[:, 0]
    # torchvision's box is of even sides only, so the two agree up to a pixel's width
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.06, rtol=0)
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    shares = [x.flatten(1).mean(1).quantile(quantiles) for x in (ours, theirs)]
    torch.testing.assert_close(*shares, atol=0.06, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 1.0]))
def test_mixup_is_that_of_torchvision_for_the_same_share(seed: int, alpha: float) -> None:
    images, labels = batch(5)
    mixed, target = MixUp(alpha=alpha, num_classes=CLASSES, generator=seeded(seed))(images, labels)
    lam = float(target.mask[0, 0, 0, 0])
    theirs = v2.MixUp(num_classes=CLASSES)
    theirs.make_params = lambda _: {"lam": lam}
    expected, soft = theirs(images, labels)
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(target.area(), soft, atol=1e-6, rtol=0)


def test_mixup_leaves_unmixed_images_bit_for_bit() -> None:
    images, labels = batch(6)
    images[0] = torch.inf
    mixed = MixUp(num_classes=CLASSES, prob=0.0)(images, labels)[0]
    assert torch.equal(mixed, images)


def test_share_is_beta() -> None:
    """Mean and variance of Beta(α, α): 1/2 and 1 / (4·(2α + 1))."""
    for alpha in (0.2, 1.0, 3.0):
        shares = Draws(seeded()).shares(alpha, 20000)[:, 0]
        assert abs(float(shares.mean()) - 0.5) < 0.01
        assert abs(float(shares.var()) - 1 / (4 * (2 * alpha + 1))) < 0.005
