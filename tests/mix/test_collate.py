"""Mixing in the collate function: any mixer, and timm's prefetching loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from batches import CLASSES, numbered, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader

import tlfx
from tlfx.errors import InputError
from tlfx.mix import BlockMix, Collate, CutMix, MixedTarget, MixUp, Mixup, RandomChoice, RandomPatchMix
from tlfx.mix.fast_collate import FastCollateMixup

EITHER: dict[str, Any] = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def samples(count: int, kind: str = "array", height: int = 12, width: int = 10, seed: int = 0) -> list[tuple[Any, int]]:
    """Random uint8 images, as the transforms of timm give them, with labels."""
    numbers = np.random.RandomState(seed)
    images = [numbers.randint(256, size=(3, height, width), dtype=np.uint8) for _ in range(count)]
    labels = numbers.randint(CLASSES, size=count).tolist()
    make = {"array": lambda x: x, "tensor": torch.from_numpy}[kind]
    return [(make(image), label) for image, label in zip(images, labels, strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    alphas=st.tuples(st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([0.0, 0.01, 0.3, 1.0])).filter(any),
    minmax=st.sampled_from([None, None, (0.2, 0.8)]),
    prob=st.sampled_from([0.0, 0.5, 1.0]),
    mode=st.sampled_from(["batch", "pair", "elem"]),
    kind=st.sampled_from(["array", "tensor"]),
    count=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_images_draws_and_area_are_those_of_timm(
    alphas: tuple[float, float], minmax: Any, kind: str, count: int, seed: int, **arguments: Any
) -> None:
    arguments |= {"mixup_alpha": alphas[0], "cutmix_alpha": alphas[1], "cutmix_minmax": minmax, "num_classes": CLASSES}
    results = []
    for kind_of_mixup in (FastCollateMixup, timm.data.FastCollateMixup):
        np.random.seed(seed)
        images, target = kind_of_mixup(**arguments)(samples(count, kind, seed=seed % 999))
        results.append((images, target, np.random.rand()))
    (ours, target, our_next), (theirs, soft, their_next) = results
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, theirs)
    assert our_next == their_next
    torch.testing.assert_close(target.area(), soft.expand(count, -1), atol=1e-6, rtol=0)


def test_in_the_prefetching_loader_of_timm(tmp_path: Path) -> None:
    """A folder of pictures through timm's own factory, in a worker, and its switch for mixing."""
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for i in range(4):
            pixels = np.full((20, 20, 3), 100 * label + i, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(label) / f"{i}.png")

    def loader() -> PrefetchLoader:
        return timm.data.create_loader(
            timm.data.create_dataset("", str(tmp_path)),
            input_size=(3, 16, 16),
            batch_size=4,
            is_training=True,
            no_aug=True,
            num_workers=1,
            persistent_workers=False,
            device=torch.device("cpu"),
            collate_fn=FastCollateMixup(**EITHER, num_classes=2),
            mean=(0.0, 0.0, 0.0),
            std=(1 / 255, 1 / 255, 1 / 255),
        )

    prefetching = loader()
    assert prefetching.mixup_enabled
    batches = list(prefetching)
    assert len(batches) == 2
    for images, target in batches:
        assert type(target) is MixedTarget
        assert images.dtype == torch.float32
        target.check(4, (16, 16))
        first, second = (rows.view(4, 1, 1, 1) for rows in (target.first, target.second))
        share_of_ones = target.mask * first + (1 - target.mask) * second
        torch.testing.assert_close(images, (100 * share_of_ones).expand_as(images), atol=4.0, rtol=0)
    prefetching.mixup_enabled = False
    assert not prefetching.mixup_enabled
    assert all((target.mask == 1).all() for _, target in prefetching)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "mixer",
    [
        CutMix(num_classes=6, mode="elem"),
        MixUp(num_classes=6),
        Mixup(**EITHER, num_classes=6, pairing="roll"),
        RandomPatchMix(patch_size=4, num_classes=6),
        RandomChoice([BlockMix(patch_size=4, num_classes=6), MixUp(num_classes=6)]),
    ],
)
def test_any_mixer_in_a_data_loader(mixer: Any, workers: int) -> None:
    images, labels = numbered(6)
    data: Any = [(image.numpy().astype(np.uint8), int(label)) for image, label in zip(images, labels, strict=True)]
    for mixed, target in DataLoader(data, batch_size=3, num_workers=workers, collate_fn=Collate(mixer)):
        assert mixed.dtype == torch.uint8
        target.check(3, (12, 8))
        expected = target.mask * target.first.view(3, 1, 1, 1) + (1 - target.mask) * target.second.view(3, 1, 1, 1)
        torch.testing.assert_close(mixed.float(), expected.expand_as(mixed), atol=0.5, rtol=0)


@pytest.mark.slow
def test_a_collated_batch_trains_an_aligned_model() -> None:
    torch.manual_seed(0)
    model = tlfx.align(timm.create_model("test_vit", img_size=32, num_classes=CLASSES))
    collate = Collate(CutMix(num_classes=CLASSES, generator=seeded()))
    images, target = collate(samples(3, height=32, width=32))
    logits, soft = model(images.float() / 255, target)
    torch.nn.functional.cross_entropy(logits, soft).backward()
    torch.testing.assert_close(soft.sum(1), torch.ones(3))
    assert not torch.allclose(soft, target.area(), atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([torch.zeros(3, 4, 4)] * 2, r"a sample is a Tensor, expected a pair \(image, label\)"),
        ([(torch.zeros(3, 4, 4), 1, 2)] * 2, "a sample is a tuple of 3, expected a pair"),
        (
            [(torch.zeros(3, 4, 4), 1), (torch.zeros(3, 4, 5), 1)],
            r"images of a batch are Tensor of shapes \[\(3, 4, 4\), \(3, 4, 5\)\], expected .* crop, resize",
        ),
        ([(Image.new("RGB", (4, 4)), 1)] * 2, r"images of a batch are Image of shapes \[\(\)\]"),
        ([((torch.zeros(3, 4, 4),) * 2, 1)] * 2, "images of a batch are tuple"),
        ([], "images of a batch are nothing"),
    ],
)
def test_samples_that_make_no_batch(batch: Any, words: str) -> None:
    for collate in (Collate(CutMix(num_classes=2)), FastCollateMixup(num_classes=2)):
        with pytest.raises(InputError, match=words):
            collate(batch)


def test_what_the_prefetching_loader_cannot_take() -> None:
    with pytest.raises(InputError, match=r"dtype torch.float32, expected torch.uint8, .* use tlfx.mix.Collate"):
        FastCollateMixup(num_classes=2)([(torch.zeros(3, 4, 4), 1)] * 2)
    with pytest.raises(InputError, match="mode is 'half'"):
        FastCollateMixup(mode="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a batch of 3 images cannot be mixed in pairs"):
        FastCollateMixup(num_classes=CLASSES)(samples(3))
