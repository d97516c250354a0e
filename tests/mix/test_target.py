"""`MixedTarget`: its arithmetic, its checks, and the libraries that rebuild it."""

from __future__ import annotations

import copy
import doctest
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import mixup_target
from torch.distributed.utils import _recursive_to  # what DistributedDataParallel does to its inputs
from torch.utils.data import DataLoader, Dataset, default_collate

import tlfx.mix.target
from tlfx.errors import TargetError
from tlfx.mix import MixedTarget, Mixup
from tlfx.mix.labels import check_labels, hard_or_soft

CLASSES, HEIGHT, WIDTH = 5, 4, 6


def make(batch: int = 4, smoothing: float = 0.1, seed: int = 0, **changes: Any) -> MixedTarget:
    generator = torch.Generator().manual_seed(seed)
    items: dict[str, Any] = {
        "first": torch.randint(CLASSES, (batch,), generator=generator),
        "second": torch.randint(CLASSES, (batch,), generator=generator),
        "mask": (torch.rand(batch, 1, HEIGHT, WIDTH, generator=generator) > 0.4).float(),
        "num_classes": CLASSES,
        "smoothing": smoothing,
    }
    return MixedTarget(items | changes)


def sample(target: MixedTarget, index: int) -> MixedTarget:
    """One sample as a data set would return it."""
    rows = {name: target[name][index] for name in ("first", "second", "mask")}
    return MixedTarget(rows, num_classes=target.num_classes, smoothing=target.smoothing)


def assert_same(ours: Any, theirs: MixedTarget) -> None:
    assert type(ours) is MixedTarget
    assert list(ours) == list(theirs)
    for name in ("first", "second", "mask"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.num_classes, ours.smoothing) == (theirs.num_classes, theirs.smoothing)
    assert torch.equal(ours.area(), theirs.area())
    batch, _, *size = theirs.mask.shape
    ours.check(batch, tuple(size))


# arithmetic


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5]))
def test_area_is_the_target_of_timm(seed: int, smoothing: float) -> None:
    target = make(smoothing=smoothing, seed=seed)
    target["second"] = target["first"].flip(0)
    lam = target.mask.mean((1, 2, 3)).unsqueeze(1)
    expected = mixup_target(target.first, CLASSES, lam, smoothing)
    torch.testing.assert_close(target.area(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(target.area().sum(1), torch.ones(4))


def test_one_mask_for_the_whole_batch() -> None:
    target = make(mask=torch.full((1, 1, HEIGHT, WIDTH), 0.25), smoothing=0.0)
    assert target.area().shape == (4, CLASSES)
    torch.testing.assert_close(target.area(), target.soften(torch.full((4,), 0.25)))


def test_soften_gives_every_position_its_target() -> None:
    target = make(smoothing=0.1)
    share = torch.rand(4, 3, 2)
    soft = target.soften(share)
    first, second = (hard_or_soft(labels, CLASSES, 0.1) for labels in (target.first, target.second))
    assert soft.shape == (4, 3, 2, CLASSES)
    for b, y, x in np.ndindex(4, 3, 2):
        torch.testing.assert_close(soft[b, y, x], share[b, y, x] * first[b] + (1 - share[b, y, x]) * second[b])


def test_soft_labels_and_hard_labels_agree() -> None:
    hard = make()
    soft = make(first=hard_or_soft(hard.first, CLASSES).half(), second=hard_or_soft(hard.second, CLASSES))
    assert soft.first.dtype == torch.float32
    torch.testing.assert_close(soft.area(), hard.area())


def test_one_label_may_be_hard_and_the_other_soft() -> None:
    hard = make()
    mixed = make(second=hard_or_soft(hard.second, CLASSES))
    torch.testing.assert_close(mixed.area(), hard.area())


def test_targets_are_float32_and_without_gradient_under_autocast() -> None:
    share = torch.rand(4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        soft = make().soften(share)
    assert soft.dtype == torch.float32
    assert not soft.requires_grad


def test_video_mask() -> None:
    target = make(mask=torch.rand(4, 1, 3, HEIGHT, WIDTH))
    target.check(4, (3, HEIGHT, WIDTH))
    torch.testing.assert_close(target.area(), target.soften(target.mask.mean((1, 2, 3, 4))))
    assert_same(default_collate([sample(target, i) for i in range(4)]), target)


def test_smoothing_may_be_left_out() -> None:
    target = make()
    short = MixedTarget(first=target.first, second=target.second, mask=target.mask, num_classes=CLASSES)
    assert short.smoothing == 0.0


# more than two images


def make_many(batch: int = 4, images: int = 3, seed: int = 0, **changes: Any) -> MixedTarget:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, images, HEIGHT, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (batch, images), generator=generator)
    items = {"labels": labels, "mask": mask / mask.sum(1, keepdim=True), "num_classes": CLASSES, "smoothing": 0.1}
    return MixedTarget(items | changes)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_many_images_are_weighted_by_their_shares(seed: int, images: int) -> None:
    target = make_many(images=images, seed=seed)
    target.check(4, (HEIGHT, WIDTH))
    share = torch.rand(4, 3, images).softmax(-1)
    soft, area = target.soften(share), target.area()
    assert soft.shape == (4, 3, CLASSES)
    for b, position in np.ndindex(4, 3):
        parts = [float(share[b, position, k]) * hard_or_soft(target.labels[b, k], CLASSES, 0.1) for k in range(images)]
        torch.testing.assert_close(soft[b, position], torch.stack(parts).sum(0))
    means = target.mask.mean((2, 3))
    parts = [means[:, k, None] * hard_or_soft(target.labels[:, k], CLASSES, 0.1) for k in range(images)]
    torch.testing.assert_close(area, torch.stack(parts).sum(0))
    torch.testing.assert_close(soft.sum(-1), torch.ones(4, 3))


def test_two_of_many_are_two() -> None:
    two = make()
    many = make_many(labels=torch.stack((two.first, two.second), 1), mask=torch.cat((two.mask, 1 - two.mask), 1))
    torch.testing.assert_close(many.area(), two.area())
    assert torch.equal(many.first, two.first)
    assert torch.equal(many.second, two.second)
    assert torch.equal(two.labels, many.labels)


@pytest.mark.parametrize("soft", [False, True])
def test_many_images_are_collated_and_moved(soft: bool) -> None:
    target = make_many(6, labels=torch.rand(6, 3, CLASSES) if soft else torch.randint(CLASSES, (6, 3)))

    def rows(index: Any) -> MixedTarget:
        return MixedTarget(target, labels=target["labels"][index], mask=target["mask"][index])

    for moved in (
        default_collate([rows(i) for i in range(6)]),
        default_collate([rows(slice(3)), rows(slice(3, 6))]),
        pickle.loads(pickle.dumps(target)),
        target.to("cpu"),
    ):
        assert type(moved) is MixedTarget
        assert torch.equal(moved.labels, target.labels)
        assert torch.equal(moved.mask, target.mask)
        assert torch.equal(moved.area(), target.area())
        moved.check(6, (HEIGHT, WIDTH))
    assert target.to("meta")["labels"].device.type == "meta"
    assert rows(2).labels.shape == ((1, 3, CLASSES) if soft else (1, 3))
    rows(2).check(1, (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": torch.ones(4, 1, HEIGHT, WIDTH)}, r"mask has shape \(4, 1, 4, 6\), expected \(4 or 1, 3, 4, 6\)"),
        (
            {"mask": torch.full((4, 3, HEIGHT, WIDTH), 0.5)},
            "shares of 3 images sum to 1.5 to 1.5 per pixel, expected 1",
        ),
        ({"labels": torch.tensor([0, 1, 2])}, "a target of 1 labels was given with 4 images"),
        ({"labels": torch.tensor(1)}, r"labels is torch.int64 of shape \(\), expected \(batch, images\)"),
        ({"labels": torch.tensor([[0], [1], [2], [3]])}, r"shape \(4, 1\), expected .* with 2 images or more"),
        ({"labels": torch.rand(CLASSES)}, r"of shape \(5,\), expected \(batch, images\)"),
        ({"labels": torch.full((4, 3), 9)}, "labels holds labels from 9 to 9, expected 0 to 4"),
        ({"labels": torch.rand(4, 3, 2)}, r"labels is torch.float32 of shape \(4, 3, 2\), expected soft labels"),
        ({"labels": [0, 1, 2]}, "labels is a list, expected a torch.Tensor"),
        ({"labels": torch.zeros(3, 3, dtype=torch.long)}, "a target of 3 labels was given with 4 images"),
        ({"first": torch.zeros(4, dtype=torch.long)}, "holds labels and first or second; expected"),
        ({"mask": torch.ones(4, 3, HEIGHT, WIDTH, device="meta")}, "several devices"),
    ],
)
def test_targets_of_many_images_that_do_not_fit(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        make_many(**changes).check(4, (HEIGHT, WIDTH))


# libraries that rebuild it


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda target: MixedTarget(**target),
        lambda target: type(target)(list(target.items())),
        lambda target: type(target)(zip(target, target.values(), strict=True)),
        lambda target: type(target)(dict(target.items())),  # accelerate, HF Trainer
        lambda target: (clone := copy.copy(target)).update(target) or clone,  # torch's pin_memory
        copy.deepcopy,
        lambda target: pickle.loads(pickle.dumps(target)),
        lambda target: target.to("cpu"),
        lambda target: target.to(torch.device("cpu"), non_blocking=True),
    ],
)
def test_rebuilt(rebuild: Callable[[MixedTarget], MixedTarget]) -> None:
    target = make()
    rebuilt = rebuild(target)
    assert rebuilt is not target
    assert_same(rebuilt, target)


def test_moved_to_another_device() -> None:
    target = make(batch=4)
    moved = target.to("meta")
    assert {moved[name].device.type for name in ("first", "second", "mask")} == {"meta"}
    assert (moved.num_classes, moved.smoothing) == (CLASSES, 0.1)
    assert moved["first"].dtype == torch.int64
    assert target["mask"].device.type == "cpu"
    with pytest.raises(TargetError, match=r"takes a device, got torch.float16"):
        target.to(torch.float16)  # type: ignore[arg-type]


def test_moved_as_distributed_data_parallel_does() -> None:
    (moved,) = _recursive_to(make(), torch.device("meta"), False)
    assert type(moved) is MixedTarget
    assert moved["mask"].device.type == "meta"
    assert (moved.num_classes, moved.smoothing) == (CLASSES, 0.1)


def test_batches_joined_and_sliced_as_accelerate_does() -> None:
    def join(batches: list[MixedTarget]) -> MixedTarget:
        """`accelerate.utils.concatenate`, for items that are tensors."""
        return type(batches[0])({name: torch.cat([batch[name] for batch in batches]) for name in batches[0]})

    target = make(batch=6)
    collated = default_collate([sample(target, i) for i in range(6)])
    halves = [
        type(collated)({name: value[part] for name, value in collated.items()}) for part in (slice(2), slice(2, 6))
    ]
    assert_same(join(halves), target)


def test_samples_are_collated() -> None:
    target = make(batch=6)
    assert_same(default_collate([sample(target, i) for i in range(6)]), target)
    assert_same(default_collate([make(batch=1), make(batch=1)]), join_rows(make(batch=1), make(batch=1)))
    soft = make(batch=6, first=torch.rand(6, CLASSES), second=torch.rand(6, CLASSES))
    assert_same(default_collate([sample(soft, i) for i in range(6)]), soft)


def test_batches_are_collated() -> None:
    batches = [make(seed=seed) for seed in range(3)]
    assert_same(default_collate(batches), join_rows(*batches))
    shared = [make(seed=seed, mask=torch.full((1, 1, HEIGHT, WIDTH), 0.1 * seed)) for seed in range(3)]
    full = [MixedTarget(target, mask=target["mask"].expand(4, -1, -1, -1)) for target in shared]
    assert_same(default_collate(shared), join_rows(*full))


def join_rows(*targets: MixedTarget) -> MixedTarget:
    rows = {name: torch.cat([target[name] for target in targets]) for name in ("first", "second", "mask")}
    return MixedTarget(rows, num_classes=CLASSES, smoothing=targets[0].smoothing)


def test_one_sample_reads_as_a_batch_of_one() -> None:
    target = make()
    assert_same(sample(target, 2), MixedTarget(target, **{n: target[n][2:3] for n in ("first", "second", "mask")}))


class Digits(Dataset[tuple[torch.Tensor, int]]):
    """Ten images that hold their own index."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, HEIGHT, WIDTH), float(index)), index % CLASSES


class MixedDigits(Digits):
    """Samples that are mixed one by one."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, MixedTarget]:  # type: ignore[override]
        image, label = super().__getitem__(index)
        return image, sample(make(batch=1, first=torch.tensor([label])), 0)


class MixingCollate:
    """Collate a batch, then mix it, inside the worker."""

    def __call__(self, samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, MixedTarget]:
        return Mixup(num_classes=CLASSES)(*default_collate(samples))


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_in_the_workers_of_a_data_loader(workers: int) -> None:
    loader = DataLoader(Digits(), batch_size=4, num_workers=workers, collate_fn=MixingCollate(), drop_last=True)
    for index, (images, target) in zip(torch.arange(8.0).view(2, 4, 1, 1, 1), loader, strict=True):
        assert type(target) is MixedTarget
        target.check(4, (HEIGHT, WIDTH))
        expected = target.mask * index + (1 - target.mask) * index.flip(0)
        torch.testing.assert_close(images, expected.expand_as(images))
        assert torch.equal(target.first, index.flatten().long() % CLASSES)


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_samples_from_a_data_loader(workers: int) -> None:
    for images, target in DataLoader(MixedDigits(), batch_size=5, num_workers=workers):
        assert type(target) is MixedTarget
        target.check(5, (HEIGHT, WIDTH))
        assert torch.equal(target.first, images[:, 0, 0, 0].long() % CLASSES)


# checks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"mask": torch.ones(4, 1, 8, 8)},
            r"mask has shape \(4, 1, 8, 8\), expected \(4 or 1, 1, 4, 6\); resize images",
        ),
        ({"mask": torch.ones(4, HEIGHT, WIDTH)}, r"mask has shape \(4, 4, 6\)"),
        ({"mask": torch.ones(4, 3, HEIGHT, WIDTH)}, r"mask has shape \(4, 3, 4, 6\)"),
        ({"mask": torch.ones(2, 1, HEIGHT, WIDTH)}, r"mask has shape \(2, 1, 4, 6\)"),
        ({"mask": torch.ones(4, 1, 1, HEIGHT, WIDTH)}, r"mask has shape \(4, 1, 1, 4, 6\)"),
        ({"mask": torch.tensor(0.5)}, r"mask has shape \(\)"),
        ({"mask": torch.ones(4, 1, HEIGHT, WIDTH, dtype=torch.uint8)}, "dtype torch.uint8, .*use mask.float"),
        ({"mask": torch.ones(4, 1, HEIGHT, WIDTH).bool()}, "dtype torch.bool"),
        ({"mask": torch.full((4, 1, HEIGHT, WIDTH), 255.0)}, r"255 to 255, expected shares .* in \[0, 1\]; divide"),
        ({"mask": torch.full((4, 1, HEIGHT, WIDTH), -0.1)}, "from -0.1 to -0.1"),
        ({"mask": torch.full((4, 1, HEIGHT, WIDTH), torch.nan)}, "from nan to nan"),
        ({"mask": None}, "mask is missing, expected a torch.Tensor"),
        ({"mask": torch.ones(4, 1, HEIGHT, WIDTH, device="meta")}, r"several devices .*target.to\(images.device\)"),
        (
            {"first": torch.tensor([0, 1, 2, 5])},
            "first holds labels from 0 to 5, expected 0 to 4; check .*num_classes=5",
        ),
        ({"second": torch.tensor([0, 1, 2, -1])}, "second holds labels from -1 to 2"),
        ({"second": torch.tensor([0, 1, 2])}, "first has 4 labels and second 3"),
        ({"first": torch.rand(4, 3)}, r"first is torch.float32 of shape \(4, 3\), expected soft labels \(batch, 5\)"),
        ({"first": torch.tensor([True] * 4)}, "first has dtype torch.bool, expected int64"),
        ({"first": [0, 1, 2, 3]}, "first is a list, expected a torch.Tensor"),
        ({"smoothing": 1.0}, r"smoothing is 1.0, expected a number in \[0, 1\)"),
        ({"smoothing": float("nan")}, "smoothing is nan"),
        ({"num_classes": 0}, "num_classes is 0, expected at least 1"),
        ({"num_classes": None}, "num_classes is None, expected one number"),
        ({"num_classes": torch.tensor([5, 6])}, r"num_classes is tensor\(\[5, 6\]\), expected one number"),
    ],
)
def test_targets_that_do_not_fit(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        make(**changes).check(4, (HEIGHT, WIDTH))


def test_a_target_from_another_batch() -> None:
    with pytest.raises(TargetError, match=r"4 labels was given with 8 images; it seems to come from another batch"):
        make().check(8, (HEIGHT, WIDTH))


def test_an_empty_target_says_what_is_missing() -> None:
    with pytest.raises(TargetError, match="num_classes is None"):
        MixedTarget().check(4)


def test_what_fits() -> None:
    make().check(4)
    make().check(4, (HEIGHT, WIDTH))
    make(mask=torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.float16)).check(4, (HEIGHT, WIDTH))
    make(first=torch.tensor([0, 1, 2, 3], dtype=torch.int32)).check(4, (HEIGHT, WIDTH))
    make().to("meta").check(4, (HEIGHT, WIDTH), values=False)


def test_labels_alone_are_checked() -> None:
    check_labels(torch.tensor([0, 4]), 5)
    check_labels(torch.rand(2, 5), 5)
    check_labels(torch.tensor([9]), 5, values=False)
    with pytest.raises(TargetError, match="target holds labels from 9 to 9"):
        check_labels(torch.tensor([9]), 5)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(tlfx.mix.target).failed == 0


def small(batch: int = 4) -> MixedTarget:
    first = torch.arange(batch)
    return MixedTarget(first=first, second=first.flip(0), mask=torch.ones(batch, 1, 2, 2), num_classes=7, smoothing=0.1)


def test_it_is_used_like_a_tensor_of_labels() -> None:
    target = small()
    assert len(target) == target.size(0) == target.size(-2) == 4
    assert target.size(1) == target.size(-1) == 7
    with pytest.raises(IndexError, match=r"dim is 2, expected 0 \(images\) or 1 \(classes\)"):
        target.size(2)
    assert target.size() == target.shape == (4, 7)
    assert target.device == torch.device("cpu")
    other = target | {"smoothing": 0.2}
    assert isinstance(other, MixedTarget)
    assert isinstance(target.copy(), MixedTarget)
    assert (other.smoothing, target.smoothing) == (0.2, 0.1)
    with pytest.raises(TargetError, match="'smoothness' is not an item of a MixedTarget"):
        target | {"smoothness": 0.2}
    with pytest.raises(TargetError, match="takes a device, got a Tensor; labels and mask keep their types"):
        target.to(torch.zeros(1000))  # type: ignore[arg-type]
    moved = target.cpu()
    assert isinstance(moved, MixedTarget)
    assert moved.mask.device.type == "cpu"
    if torch.cuda.is_available():
        assert target.cuda().mask.device.type == target.cuda(0, non_blocking=True).first.device.type == "cuda"


def test_length_of_collated_batches_and_of_one_sample() -> None:
    sample = MixedTarget(first=torch.tensor(1), second=torch.tensor(2), mask=torch.ones(1, 2, 2), num_classes=7)
    with pytest.raises(TypeError, match=r"single sample has no length.*default_collate"):
        len(sample)
    assert len(default_collate([sample, sample, sample])) == 3
    assert len(default_collate([small(), small()])) == 8


def test_repr_is_short() -> None:
    expected = "MixedTarget(first=(4,), second=(4,), mask=(4, 1, 2, 2), num_classes=7, smoothing=0.1)"
    assert repr(small()) == str(small()) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("frist", r"'frist' is not an item of a MixedTarget, expected first, .*; did you mean first\?"),
        ("num_class", r"did you mean num_classes\?"),
        ("weights", r"'weights' is not an item of a MixedTarget, expected .*smoothing$"),
    ],
)
def test_misspelt_items(name: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        MixedTarget({**small(), name: 1})
