"""`tlfx.mix.GridMix`, and the alignment of mixtures of more than two images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import helpers
import numpy as np
import pytest
import timm
import torch
from batches import CLASSES, batch, numbered, seeded, shaped
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.xcit import Xcit
from torch import Tensor, nn

import tlfx
from tlfx.errors import InputError
from tlfx.mix import Collate, GridMix, MixUp, RandomChoice, ShareTarget


@settings(max_examples=50, deadline=None)
@given(
    images=st.integers(2, 5),
    grid=st.integers(2, 6),
    mode=st.sampled_from(["batch", "elem"]),
    pairing=st.sampled_from(["roll", "shuffle"]),
    prob=st.sampled_from([0.5, 1.0]),
    extra=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
def test_labels_and_mask_tell_where_each_pixel_came_from(
    images: int, grid: int, extra: int, seed: int, **arguments: Any
) -> None:
    count = images + extra
    given_images, labels = numbered(count, 13, 9)
    mixer = GridMix(images=images, grid=grid, num_classes=count, generator=seeded(seed), **arguments)
    mixed, target = mixer(given_images, labels)
    target.check(count, (13, 9))
    assert ("labels" in target) == (images > 2)
    assert target.labels.shape == (count, images)
    assert torch.equal(target.labels[:, 0], labels)
    assert all(len(set(row)) == images for row in target.labels.tolist())
    if arguments["pairing"] == "roll":
        assert target.labels.tolist() == [[(i - k) % count for k in range(images)] for i in range(count)]
    shares = target.mask if images > 2 else torch.cat((target.mask, 1 - target.mask), 1)
    assert torch.equal(shares.amax(1), torch.ones(count, 13, 9))  # one-hot
    assert torch.equal((shares * target.labels[:, :, None, None]).sum(1, keepdim=True).expand_as(mixed), mixed)
    for row, column in np.ndindex(grid, grid):
        cell = shares[:, :, [y for y in range(13) if y * grid // 13 == row]]
        cell = cell[..., [x for x in range(9) if x * grid // 9 == column]].flatten(2)
        assert cell.shape[2] > 0
        assert torch.equal(cell.amin(2), cell.amax(2))
    torch.testing.assert_close(target.area().sum(1), torch.ones(count))


def test_shares_are_equal_on_average_and_for_large_alpha_each_time() -> None:
    masks = GridMix(images=4, grid=8, alpha=1.0, generator=seeded()).masks(shaped(2000, 8, 8))
    torch.testing.assert_close(masks.mean((0, 2, 3)), torch.full((4,), 0.25), atol=0.02, rtol=0)
    torch.testing.assert_close(masks.mean((0, 1)), torch.full((8, 8), 0.25))
    spread = [
        float(GridMix(images=4, grid=8, alpha=alpha, generator=seeded()).masks(shaped(500, 8, 8)).mean((2, 3)).std())
        for alpha in (0.2, 1.0, 100.0)
    ]
    assert spread[0] > spread[1] > 2 * spread[2]


def test_uint8_in_a_collate_function_and_switched_off() -> None:
    images, labels = numbered(5)
    samples = list(zip(images.to(torch.uint8), labels.tolist(), strict=True))
    mixer = GridMix(images=3, num_classes=5, generator=seeded())
    mixed, target = Collate(RandomChoice([mixer, MixUp(num_classes=5)], p=[1, 0]))(samples)
    assert mixed.dtype == torch.uint8
    assert target.mask.shape == (5, 3, 12, 8)
    mixer.mixup_enabled = False
    mixed, target = Collate(mixer)(samples)
    assert torch.equal(mixed.float(), images)
    assert torch.equal(target.area(), torch.eye(5))


def test_soft_labels() -> None:
    images, labels = batch(5)
    hard = GridMix(images=3, num_classes=CLASSES, generator=seeded())(images, labels)[1]
    soft = GridMix(images=3, generator=seeded())(images, torch.nn.functional.one_hot(labels, CLASSES).float())[1]
    torch.testing.assert_close(soft.area(), hard.area())


# alignment


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=CLASSES)


vit = partial(helpers.vit, img_size=32, patch_size=8, embed_dim=24, num_classes=CLASSES)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=CLASSES
    )


def mixer() -> nn.Module:
    return MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=CLASSES)


def xcit() -> nn.Module:
    return Xcit(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, cls_attn_layers=1, num_classes=CLASSES)


def dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, CLASSES, 3, padding=1))


@pytest.mark.parametrize("build", helpers.slow_except([mixer, dense], [resnet, vit, swin, mixer, xcit, dense]))
def test_shares_of_each_image_are_those_of_two_image_mixing(build: Callable[[], nn.Module]) -> None:
    """Labels are linear in the mask, so image k against all others has the share that it has among K."""
    torch.manual_seed(0)
    model = tlfx.align(build().eval())
    images, labels = batch(5, 32, 32)
    mixed, target = GridMix(images=4, num_classes=CLASSES, label_smoothing=0.1, mode="elem", generator=seeded())(
        images, labels
    )
    with torch.no_grad():
        logits, soft = model(mixed, target)
        assert torch.equal(logits, model(mixed))
        expected = torch.zeros_like(soft)
        for k in range(4):
            one = torch.zeros(5, dtype=torch.long)
            against = ShareTarget(first=one, second=one + 1, mask=target.mask[:, k : k + 1], num_classes=2)
            share = model(mixed, against)[1][:, 0]
            label = tlfx.mix.labels.hard_or_soft(target.labels[:, k], CLASSES, 0.1)
            expected += share.unsqueeze(1) * label.view(5, CLASSES, *[1] * (share.dim() - 1))
    assert soft.shape == logits.shape
    torch.testing.assert_close(soft, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_step_of_training() -> None:
    model = tlfx.align(vit().train())
    images, target = GridMix(images=3, num_classes=CLASSES)(*batch(3, 32, 32))
    logits, soft = model(images, target=target)
    torch.nn.functional.cross_entropy(logits, soft).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not soft.requires_grad


# what cannot be mixed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": 1}, "images is 1 with pairing='roll', expected at least 2"),
        (
            {"images": 3, "pairing": "mirror"},
            "images is 3 with pairing='mirror', expected at least 2, and exactly 2 with pairing='mirror'",
        ),
        ({"grid": 1}, "grid is 1, expected a number of cells along each axis, at least 2"),
        ({"alpha": -1.0}, "alpha is -1.0"),
    ],
)
def test_arguments_that_no_mixing_can_follow(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        GridMix(**arguments)


def test_images_that_cannot_be_mixed() -> None:
    with pytest.raises(InputError, match="a batch of 3 images cannot be mixed, at least 4 are needed; use drop_last"):
        GridMix(num_classes=CLASSES)(*batch(3))
    with pytest.raises(InputError, match=r"images of 12×3 do not divide into a grid of 4×4 cells; use a smaller grid"):
        GridMix(num_classes=CLASSES)(*batch(4, 12, 3))


def test_channels_stay_last() -> None:
    images, labels = batch(4)
    images = images.to(memory_format=torch.channels_last)
    mixed: Tensor = GridMix(num_classes=CLASSES)(images, labels)[0]
    assert mixed.stride() == images.stride()
