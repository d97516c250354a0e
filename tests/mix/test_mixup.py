"""`tlfx.mix.Mixup` against the real `timm.data.Mixup`, and what it adds."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from batches import CLASSES, batch
from hypothesis import given, settings
from hypothesis import strategies as st

import tlfx.mix.mixup
from tlfx.errors import InputError, TargetError
from tlfx.mix import MixedTarget, Mixup

EITHER: dict[str, Any] = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def run(mixer: Any, images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, Any, float]:
    """What the mixer returns, and the next number of the generator it drew from."""
    np.random.seed(seed)
    mixed, target = mixer(images.clone(memory_format=torch.preserve_format), labels)
    return mixed, target, np.random.rand()


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.stride() == theirs.stride()
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.element_size()]
    assert torch.equal(ours.contiguous().view(width), theirs.contiguous().view(width))


def assert_like_timm(images: torch.Tensor, labels: torch.Tensor, seed: int, **arguments: Any) -> None:
    ours, target, our_next = run(Mixup(**arguments), images, labels, seed)
    theirs, soft, their_next = run(timm.data.Mixup(**arguments), images, labels, seed)
    assert_same_bits(ours, theirs)
    assert our_next == their_next
    if arguments.get("correct_lam", True) and images.dtype == torch.float32:
        torch.testing.assert_close(target.area(), soft, atol=1e-6, rtol=0)


@settings(max_examples=150, deadline=None)
@given(
    alphas=st.tuples(st.sampled_from([0.0, 0.01, 0.2, 1.0]), st.sampled_from([0.0, 0.3, 1.0])).filter(any),
    minmax=st.sampled_from([None, None, (0.2, 0.8), (0.3, 1.0)]),
    prob=st.sampled_from([0.0, 0.5, 1.0]),
    switch_prob=st.sampled_from([0.0, 0.5, 1.0]),
    mode=st.sampled_from(["batch", "pair", "elem"]),
    correct_lam=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    count=st.sampled_from([2, 4, 10]),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_images_draws_and_area_are_those_of_timm(
    alphas: tuple[float, float],
    minmax: tuple[float, float] | None,
    count: int,
    height: int,
    width: int,
    seed: int,
    **arguments: Any,
) -> None:
    images, labels = batch(count, height, width, seed % 1000)
    mixup_alpha, cutmix_alpha = alphas
    arguments |= {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha, "cutmix_minmax": minmax}
    assert_like_timm(images, labels, seed, num_classes=CLASSES, **arguments)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts_are_those_of_timm(mode: str, dtype: torch.dtype) -> None:
    images, labels = batch()
    images = images.to(dtype, memory_format=torch.channels_last)
    for seed in range(6):
        assert_like_timm(images, labels, seed, mode=mode, num_classes=CLASSES, **EITHER)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_minus_zero_and_infinity_survive_the_box(mode: str) -> None:
    images, labels = batch()
    images[:, 0], images[:, 1] = -0.0, torch.inf
    for seed in range(4):
        assert_like_timm(images, labels, seed, mixup_alpha=0.0, cutmix_alpha=1.0, mode=mode, num_classes=CLASSES)


def test_defaults_are_those_of_timm() -> None:
    ours, theirs = vars(Mixup()), vars(timm.data.Mixup())
    assert {name: ours[name] for name in theirs} == theirs


def test_switched_off_between_batches() -> None:
    images, labels = batch()
    for mode in ("batch", "pair", "elem"):
        mixer = Mixup(mode=mode, num_classes=CLASSES)
        mixer.mixup_enabled = False
        mixed, target = mixer(images, labels)
        assert torch.equal(mixed, images)
        assert (target.mask == 1).all()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("correct_lam", [True, False])
@pytest.mark.parametrize("minmax", [None, (0.2, 0.8)])
def test_the_mask_tells_which_image_a_pixel_came_from(
    mode: Any, correct_lam: bool, minmax: tuple[float, float] | None
) -> None:
    number = torch.arange(1.0, 9.0).view(8, 1, 1, 1)  # image i is i + 1 everywhere
    mixer = Mixup(**EITHER, cutmix_minmax=minmax, mode=mode, correct_lam=correct_lam, num_classes=CLASSES)
    for seed in range(8):
        mixed, target, _ = run(mixer, number.expand(8, 3, 9, 11), torch.arange(8) % CLASSES, seed)
        expected = target.mask * number + (1 - target.mask) * number.flip(0)
        torch.testing.assert_close(mixed, expected.expand_as(mixed), atol=1e-5, rtol=0)


def test_mixup_is_a_constant_mask() -> None:
    _, target, _ = run(Mixup(num_classes=CLASSES), *batch(), seed=3)
    np.random.seed(3)
    np.random.rand()
    lam = np.random.beta(1.0, 1.0)
    assert target.mask.shape == (8, 1, 12, 8)
    torch.testing.assert_close(target.mask, torch.full_like(target.mask, lam))


def test_the_target_holds_both_labels() -> None:
    images, labels = batch()
    mixed, target = Mixup(num_classes=CLASSES)(images, labels)
    assert isinstance(target, MixedTarget)
    assert target.mask.dtype == torch.float32
    assert torch.equal(target.first, labels)
    assert torch.equal(target.second, labels.flip(0))
    assert (target.num_classes, target.smoothing) == (CLASSES, 0.1)
    assert mixed.shape == images.shape


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_the_images_of_the_caller_stay(mode: Any) -> None:
    images, labels = batch()
    before = images.clone()
    mixed, _, _ = run(Mixup(mode=mode, num_classes=CLASSES), images, labels, seed=1)
    assert torch.equal(images, before)
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("pairing", ["roll", "shuffle"])
def test_odd_batches_with_other_partners(mode: Any, pairing: Any) -> None:
    number = torch.arange(5.0)
    mixer = Mixup(**EITHER, mode=mode, pairing=pairing, num_classes=CLASSES)
    for seed in range(4):
        images = number.view(5, 1, 1, 1).expand(5, 3, 9, 11)
        mixed, target, _ = run(mixer, images, torch.arange(5), seed)
        if pairing == "roll":
            assert torch.equal(target.second, torch.arange(5).roll(1))
        assert (target.second != target.first).all()
        expected = target.mask * target.first.view(5, 1, 1, 1) + (1 - target.mask) * target.second.view(5, 1, 1, 1)
        torch.testing.assert_close(mixed, expected.expand_as(mixed), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"a batch of 5 images .* or pairing='roll'"):
        Mixup(num_classes=CLASSES)(images, torch.arange(5))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_multi_label_is_that_of_timm(mode: str) -> None:
    images, _ = batch()
    labels = torch.randint(2, (8, CLASSES), generator=torch.Generator().manual_seed(0))
    assert_like_timm(images, labels, 5, mode=mode, num_classes=CLASSES, multi_label=True, **EITHER)


def test_soft_labels_are_mixed_as_they_are() -> None:
    images, labels = batch()
    soft = torch.nn.functional.one_hot(labels, CLASSES).half()
    _, hard_target, _ = run(Mixup(num_classes=CLASSES), images, labels, seed=4)
    _, soft_target, _ = run(Mixup(num_classes=CLASSES), images, soft, seed=4)
    torch.testing.assert_close(soft_target.area(), hard_target.area())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(5, 3, 8, 8), r"batch of 5 images .* even batch size .* drop_last=True"),
        (torch.zeros(1, 3, 8, 8), "batch of 1 image"),
        (torch.zeros(0, 3, 8, 8), "batch of 0 images"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\), expected a torch.Tensor \(batch, channels, height, width\)"),
        (torch.zeros(4, 3, 2, 8, 8), r"shape \(4, 3, 2, 8, 8\)"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "dtype torch.int64, expected a floating type or torch.uint8"),
        ([torch.zeros(3, 8, 8)] * 2, "images are a list"),
    ],
)
def test_images_that_cannot_be_mixed(images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Mixup(num_classes=CLASSES)(images, torch.zeros(len(images), dtype=torch.long))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 2, 7]), "first holds labels from 0 to 7, expected 0 to 6; check the labels"),
        (torch.tensor([0, 1, 2, -1]), "labels from -1 to 2"),
        (torch.tensor([0, 1]), r"labels of shape \(2,\) was given with 4 images"),
        (
            torch.tensor([0.0, 1.0, 2.0, 3.0]),
            r"torch.float32 of shape \(4,\), expected integer labels .* use labels.long\(\)",
        ),
        (torch.tensor([True, False, True, True]), "dtype torch.bool"),
        ([0, 1, 2, 3], "labels are a list"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        Mixup(num_classes=CLASSES)(torch.zeros(4, 3, 8, 8), labels)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "half"}, "mode is 'half', expected 'batch', 'pair' or 'elem'"),
        ({"mixup_alpha": 0.0}, "mixup_alpha is 0.0 and cutmix_alpha is 0.0"),
        ({"cutmix_alpha": -1.0}, "none below 0"),
        ({"cutmix_minmax": (0.8, 0.2)}, r"cutmix_minmax is \(0.8, 0.2\), expected \(min, max\)"),
        ({"cutmix_minmax": (0.1, 0.2, 0.3)}, "cutmix_minmax"),
    ],
)
def test_arguments_that_no_mixing_can_follow(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Mixup(**arguments)


def test_a_box_without_pixels() -> None:
    mixer = Mixup(mixup_alpha=0.0, cutmix_minmax=(0.3, 0.4), num_classes=CLASSES)
    with pytest.raises(InputError, match=r"leaves no integer number of pixels for images of 4×4; widen it"):
        mixer(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(tlfx.mix.mixup).failed == 0
