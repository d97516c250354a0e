"""What all mixers have in common: partners, modes, seeds, devices, and what cannot be mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from batches import CLASSES, batch, numbered, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2  # type: ignore[import-untyped]

from tlfx.errors import InputError, TargetError
from tlfx.mix import (
    AttentiveCutMix,
    BlockMix,
    Collate,
    CutMix,
    GridMix,
    MaskMixer,
    MixedTarget,
    Mixer,
    MixUp,
    RandomChoice,
    RandomPatchMix,
)

MIXERS: dict[str, Callable[..., MaskMixer]] = {
    "cutmix": CutMix,
    "mixup": MixUp,
    "patches": lambda **arguments: RandomPatchMix(patch_size=4, **arguments),
    "grid": lambda **arguments: GridMix(images=2, **arguments),
    "blocks": lambda **arguments: BlockMix(patch_size=2, min_block=2, **arguments),
}
every_mixer = pytest.mark.parametrize("make", MIXERS.values(), ids=MIXERS)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MIXERS)),
    mode=st.sampled_from(["batch", "pair", "elem"]),
    pairing=st.sampled_from(["mirror", "roll", "shuffle"]),
    alpha=st.sampled_from([0.1, 1.0, 5.0]),
    prob=st.sampled_from([0.5, 1.0]),
    count=st.integers(2, 7),
    seed=st.integers(0, 10**6),
)
def test_mask_and_labels_tell_where_each_pixel_came_from(
    name: str, mode: str, pairing: str, alpha: float, prob: float, count: int, seed: int
) -> None:
    pairing, count = ("mirror", count + count % 2) if mode == "pair" or pairing == "mirror" else (pairing, count)
    images, labels = numbered(count)
    mixer = MIXERS[name](
        alpha=alpha,
        prob=prob,
        mode=mode,
        pairing=pairing,
        num_classes=count,
        generator=seeded(seed),
        label_smoothing=0.1,
    )
    mixed, target = mixer(images, labels)
    assert type(target) is MixedTarget
    assert target.mask.shape == (count, 1, 12, 8)
    assert target.mask.dtype == torch.float32
    assert target.smoothing == 0.1
    assert torch.equal(target.first, labels)
    partner = {
        "mirror": list(range(count))[::-1],
        "roll": [(i - 1) % count for i in range(count)],
        "shuffle": target.second.tolist(),
    }[pairing]
    assert target.second.tolist() == partner
    assert sorted(partner) == list(range(count))
    assert all(i != j for i, j in enumerate(partner))
    first, second = (rows.view(-1, 1, 1, 1).float() for rows in (target.first, target.second))
    expected = target.mask * first + (1 - target.mask) * second
    torch.testing.assert_close(mixed, expected.expand_as(mixed), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.area().sum(1), torch.ones(count))


@every_mixer
def test_modes_draw_one_mask_for_a_batch_a_pair_or_an_element(make: Callable[..., MaskMixer]) -> None:
    def masks(mode: str) -> torch.Tensor:
        mixer = make(num_classes=CLASSES, mode=mode, pairing="mirror", generator=seeded(3))
        return mixer(*batch())[1].mask.flatten(1)

    assert len(masks("batch").unique(dim=0)) == 1
    pairs, elements = masks("pair"), masks("elem")
    assert torch.equal(pairs, pairs.flip(0))
    assert len(pairs[:4].unique(dim=0)) > 2
    assert len(elements.unique(dim=0)) > 4


@every_mixer
def test_prob_is_how_many_are_mixed(make: Callable[..., MaskMixer]) -> None:
    images, labels = numbered(400)
    mixed = make(alpha=50.0, num_classes=400, mode="elem", prob=0.3, generator=seeded())(images, labels)[0]
    assert 80 < int((mixed != images).flatten(1).any(1).sum()) < 160
    mixer = make(num_classes=400, prob=0.0)
    assert torch.equal(mixer(images, labels)[0], images)


@every_mixer
def test_one_seed_gives_one_batch(make: Callable[..., MaskMixer]) -> None:
    def runs(generator: torch.Generator | None) -> list[torch.Tensor]:
        mixer = make(num_classes=CLASSES, mode="elem", pairing="shuffle", generator=generator)
        return [mixer(*batch())[0] for _ in range(2)]

    state = torch.get_rng_state()
    first, second = runs(seeded(5))
    assert torch.equal(torch.get_rng_state(), state)  # a separate generator leaves torch's alone
    assert not torch.equal(first, second)
    assert all(map(torch.equal, runs(seeded(5)), (first, second)))
    torch.manual_seed(5)
    assert all(map(torch.equal, runs(None), (first, second)))


@every_mixer
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts(make: Callable[..., MaskMixer], dtype: torch.dtype) -> None:
    images, labels = numbered(4, 8, 8)
    images = images.to(dtype, memory_format=torch.channels_last)
    before = images.clone()
    mixed, target = make(num_classes=CLASSES, mode="elem", generator=seeded(1))(images, labels)
    assert mixed.dtype == dtype
    assert mixed.stride() == images.stride()
    assert torch.equal(images, before)
    first, second = (rows.view(-1, 1, 1, 1).float() for rows in (target.first, target.second))
    expected = (target.mask * first + (1 - target.mask) * second).expand_as(mixed)
    tolerance = 0.5 if dtype == torch.uint8 else 0.02
    torch.testing.assert_close(mixed.float(), expected, atol=tolerance, rtol=0)


@every_mixer
def test_no_value_is_read_from_the_device_of_the_images(make: Callable[..., MaskMixer]) -> None:
    """On a device without values every read would raise; on a GPU it would wait."""
    images, labels = (x.to("meta") for x in batch(6))
    for arguments in ({"mode": "batch"}, {"mode": "pair", "pairing": "mirror"}, {"mode": "elem", "pairing": "shuffle"}):
        mixed, target = make(num_classes=CLASSES, **arguments)(images, labels)
        assert mixed.shape == images.shape
        assert {x.device.type for x in (mixed, target.mask, target.first, target.second)} == {"meta"}


@every_mixer
def test_infinity_and_minus_zero_survive_where_pixels_are_moved(make: Callable[..., MaskMixer]) -> None:
    images, labels = batch(4)
    images[:, 0], images[:, 1] = torch.inf, -0.0
    mixed = make(num_classes=CLASSES, generator=seeded(1))(images, labels)[0]
    assert (mixed[:, 0] == torch.inf).all()
    assert torch.signbit(mixed[:, 1]).all()


@every_mixer
def test_switched_off_between_batches(make: Callable[..., MaskMixer]) -> None:
    mixer = make(num_classes=CLASSES)
    mixer.mixup_enabled = False
    images, labels = batch(3)
    mixed, target = mixer(images, labels)
    assert torch.equal(mixed, images)
    assert mixed is not images
    assert torch.equal(target.area(), torch.nn.functional.one_hot(labels, CLASSES).float())


@every_mixer
def test_soft_labels_say_how_many_classes_there_are(make: Callable[..., MaskMixer]) -> None:
    images, labels = batch(5)
    hard = make(num_classes=CLASSES, generator=seeded())(images, labels)[1]
    soft = make(generator=seeded())(images, torch.nn.functional.one_hot(labels, CLASSES).half())[1]
    assert soft.num_classes == CLASSES
    torch.testing.assert_close(soft.area(), hard.area())


def test_a_mixer_of_ones_own() -> None:
    class TopLeft(MaskMixer):
        def masks(self, others: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros_like(others[:, :1])
            mask[..., 0, 0] = 1
            return mask

    images, labels = numbered(3)
    mixed, target = TopLeft(num_classes=3)(images, labels)
    assert mixed[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert (mixed[:, 0, 1:] == torch.tensor([2.0, 0.0, 1.0]).view(3, 1, 1)).all()
    torch.testing.assert_close(target.area().diagonal(), torch.full((3,), 1 / 96))


# in the place of torchvision's


@every_mixer
def test_among_transforms_of_torchvision(make: Callable[..., MaskMixer]) -> None:
    images, labels = batch(4)
    chosen = v2.RandomChoice([make(num_classes=CLASSES), make(num_classes=CLASSES)])
    mixed, target = v2.Compose([v2.Identity(), chosen])(images, labels)
    target.check(4, (12, 8))
    assert mixed.shape == images.shape
    mixed, target = make(num_classes=CLASSES)((images, labels))  # one pair, as transforms take it too
    target.check(4, (12, 8))


class Mixes:
    """A collate function as in torchvision's guide."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def __call__(self, samples: list[Any]) -> tuple[torch.Tensor, MixedTarget]:
        return self.mixer(*default_collate(samples))


@every_mixer
def test_in_a_collate_function(make: Callable[..., MaskMixer]) -> None:
    samples: Any = list(zip(*numbered(6), strict=True))
    for workers in (0, 2):
        loader: DataLoader[Any] = DataLoader(
            samples, batch_size=3, num_workers=workers, collate_fn=Mixes(make(num_classes=6))
        )
        for start, (images, target) in zip((0, 3), loader, strict=True):
            target.check(3, (12, 8))
            assert target.first.tolist() == [start, start + 1, start + 2]
            expected = target.mask * target.first.view(3, 1, 1, 1) + (1 - target.mask) * target.second.view(3, 1, 1, 1)
            torch.testing.assert_close(images, expected.expand_as(images))


def test_a_generator_in_several_workers_would_repeat_itself() -> None:
    samples: Any = list(zip(*numbered(6), strict=True))
    collate = Mixes(CutMix(num_classes=6, generator=seeded()))
    assert len(list(DataLoader(samples, batch_size=3, num_workers=1, collate_fn=collate))) == 2
    with pytest.raises(InputError, match="each of 2 DataLoader workers has the same copy"):
        list(DataLoader(samples, batch_size=6, num_workers=2, collate_fn=collate))


# what cannot be mixed


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 8, 8), "a batch of 1 image cannot be mixed, at least 2 are needed; use drop_last=True"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\), expected a torch.Tensor \(batch, channels, height, width\)"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int32), "dtype torch.int32, expected a floating type or torch.uint8"),
        (torch.zeros(4, 3, 8, 8).bool(), "dtype torch.bool"),
        (torch.full((4, 3, 8, 8), torch.nan), "images hold NaN in 4 of 4 samples; .* check the data"),
        ([torch.zeros(3, 8, 8)] * 2, "images are a list"),
    ],
)
@every_mixer
def test_images_that_cannot_be_mixed(make: Callable[..., MaskMixer], images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make(num_classes=CLASSES)(images, torch.zeros(len(images), dtype=torch.long))


def test_one_sample_of_nan() -> None:
    images, labels = batch(4)
    images[2, 1, 3, 3] = torch.nan
    with pytest.raises(InputError, match="NaN in 1 of 4 samples"):
        CutMix(num_classes=CLASSES)(images, labels)


def test_an_odd_batch_has_no_mirror() -> None:
    with pytest.raises(InputError, match=r"a batch of 5 images .* or pairing='roll'"):
        CutMix(num_classes=CLASSES, pairing="mirror")(*batch(5))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 2, 7]), "first holds labels from 0 to 7, expected 0 to 6"),
        (
            torch.tensor([0, 1]),
            r"labels of shape \(2,\) was given with 4 images, expected one label per image; it seems",
        ),
        (torch.tensor(3), r"labels is torch.int64 of shape \(\), expected .* use labels.expand\(batch\) if all images"),
        (
            torch.rand(4),
            r"labels is torch.float32 of shape \(4,\), .* use labels.long\(\) if .* or labels\[:, None\] if",
        ),
        (torch.rand(4, 6), r"first is torch.float32 of shape \(4, 6\), expected soft labels \(batch, 7\)"),
        (torch.zeros(4, 1).long(), r"labels is torch.int64 of shape \(4, 1\), .* use labels.squeeze\(1\)"),
        (torch.eye(4, 7).long(), r"torch.int64 of shape \(4, 7\), .* use labels.argmax\(1\) if they are one-hot, or"),
        (torch.eye(4, 7).bool(), r"torch.bool of shape \(4, 7\), .* use labels.argmax\(1\) if they are one-hot"),
        (torch.zeros(4, 8, 8).long(), r"of shape \(4, 8, 8\), .* a mixed image has"),
        (torch.zeros(4, 1, 8, 8), r"of shape \(4, 1, 8, 8\), .* for maps of labels, mix them with the images"),
        ([0, 1, 2, 3], "labels are a list"),
        (None, "labels are a NoneType"),
    ],
)
@every_mixer
def test_labels_that_do_not_fit(make: Callable[..., MaskMixer], labels: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        make(num_classes=CLASSES)(torch.zeros(4, 3, 8, 8), labels)


@every_mixer
def test_labels_of_unknown_classes(make: Callable[..., MaskMixer]) -> None:
    with pytest.raises(
        TargetError, match=r"num_classes is not given and labels are torch.int64 of shape \(4,\): pass "
    ):
        make()(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "half"}, "mode is 'half', expected 'batch', 'pair' or 'elem'"),
        ({"pairing": "random"}, "pairing is 'random', expected 'mirror', 'roll' or 'shuffle'"),
        ({"mode": "pair"}, "which pairing='roll' does not: use pairing='mirror', or mode='elem'"),
        ({"prob": 1.5}, r"prob is 1.5, expected a probability in \[0, 1\]"),
        ({"alpha": 0.0}, r"alpha is 0.0, expected a number above 0 for λ ~ Beta\(α, α\)"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"generator": 3}, r"generator is an int, expected torch.Generator\(\).manual_seed\(0\)"),
    ],
)
@every_mixer
def test_arguments_that_no_mixing_can_follow(
    make: Callable[..., MaskMixer], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        make(**arguments)


def test_repr_shows_the_arguments() -> None:
    assert repr(CutMix(num_classes=7, prob=0.5)) == (
        "CutMix(images=2, num_classes=7, label_smoothing=0.0, mode='batch', prob=0.5, pairing='roll', alpha=1.0)"
    )
    attentive = repr(AttentiveCutMix(nn.AvgPool2d(4), num_classes=7))
    assert attentive.endswith("attention=AvgPool2d, patches=6)")
    assert repr(AttentiveCutMix(torch.nn.functional.relu, num_classes=7)).endswith("attention=relu, patches=6)")
    chosen = repr(RandomChoice([CutMix(num_classes=7)], p=[2.0]))
    assert chosen.startswith("RandomChoice([CutMix(images=2, ")
    assert chosen.endswith("], p=[2.0])")
    assert repr(Collate(CutMix(num_classes=7))).startswith("Collate(CutMix(")
