"""The λ gap, against λ from the shares of the images themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tlfx
from tlfx.errors import InputError, TargetError
from tlfx.mix import CutMix, GridMix, MixUp


def small_model() -> nn.Module:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return tlfx.align(nn.Sequential(convolutions, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)))


MODEL = small_model()


def mixed(mixer: type[Any], labels: Tensor, **options: Any) -> tuple[Tensor, tlfx.MixedTarget]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(len(labels), 3, 16, 16, generator=generator)
    batch: tuple[Tensor, tlfx.MixedTarget] = mixer(num_classes=5, mode="elem", generator=generator, **options)(
        images, labels
    )
    return batch


def shares(images: Tensor, target: tlfx.MixedTarget) -> Tensor:
    """|λ − λ_area| of each image from the shares of both images, whatever their labels are."""
    zero = torch.zeros(len(images), dtype=torch.long)
    share = tlfx.mix.ShareTarget(first=zero, second=zero + 1, mask=target.mask, num_classes=2)
    _, soft = MODEL(images, target=share)
    return (soft - share.area())[:, 0].abs()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pairs_of_one_class_do_not_count_and_smoothing_changes_nothing(smoothing: float) -> None:
    images, target = mixed(CutMix, torch.tensor([0, 1, 2, 2, 4, 3]), label_smoothing=smoothing)
    _, soft = MODEL(images, target)
    area = target.mask.flatten(1).mean(1)
    counted = (target.first != target.second) & (area > 0) & (area < 1)
    assert 0 < counted.sum() < len(counted)
    gaps = tlfx.lambda_gap(target, soft, reduction="none")
    assert torch.equal(gaps.isnan(), ~counted)
    expected = shares(images, target)[counted]
    assert expected.max() > 0.01
    torch.testing.assert_close(gaps[counted], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tlfx.lambda_gap(target, soft), expected.mean(), rtol=1e-4, atol=1e-6)


def test_soft_labels_that_overlap() -> None:
    images, target = mixed(CutMix, torch.arange(4))
    first, second = torch.rand(4, 5).softmax(1), torch.rand(4, 5).softmax(1)
    target = tlfx.MixedTarget(first=first, second=second, mask=target.mask, num_classes=5)
    _, soft = MODEL(images, target)
    expected = shares(images, target)
    gaps = tlfx.lambda_gap(target, soft, reduction="none")
    counted = ~gaps.isnan()
    assert counted.any()
    torch.testing.assert_close(gaps[counted], expected[counted], rtol=1e-3, atol=1e-5)


def test_more_images_than_two_have_the_distance_between_their_shares() -> None:
    images, target = mixed(GridMix, torch.arange(5), label_smoothing=0.1)
    _, soft = MODEL(images, target)
    plain = tlfx.MixedTarget({**target, "smoothing": 0.0})
    _, without = MODEL(images, plain)
    expected = (without - plain.area()).abs().sum(1) / 2
    assert target.labels.shape[1] > 2
    assert expected.max() > 0.01
    torch.testing.assert_close(tlfx.lambda_gap(target, soft), expected.mean(), rtol=1e-4, atol=1e-6)


def test_dense_outputs_have_the_mean_over_positions() -> None:
    _, target = mixed(CutMix, torch.arange(4))
    area = target.mask.flatten(1).mean(1)
    share = torch.rand(4, 6)
    tokens = target.soften(share)  # (batch, tokens, classes)
    dense = tokens.movedim(-1, 1).view(4, 5, 2, 3)
    for soft in (tokens, dense):
        gaps = tlfx.lambda_gap(target, soft, reduction="none")
        counted = ~gaps.isnan()
        torch.testing.assert_close(gaps[counted], (share - area[:, None]).abs().mean(1)[counted])


def test_a_uniform_mixture_has_no_gap_and_an_unmixed_batch_no_number() -> None:
    images, target = mixed(MixUp, torch.arange(4))
    assert tlfx.lambda_gap(target, MODEL(images, target)[1]) < 1e-6
    images, target = mixed(CutMix, torch.arange(4), prob=0.0)
    assert tlfx.lambda_gap(target, MODEL(images, target)[1]).isnan()


def test_what_it_refuses() -> None:
    _, target = mixed(CutMix, torch.arange(4))
    given: Any
    for given, said in (
        (torch.rand(4, 6), r"has shape \(4, 6\), expected 4 images and 5 classes"),
        (torch.rand(3, 5), r"has shape \(3, 5\), expected 4 images and 5 classes"),
        (torch.rand(4), r"has shape \(4,\), expected 4 images and 5 classes"),
        ((target.area(), None), "soft target is a tuple, expected the tensor"),
    ):
        with pytest.raises(TargetError, match=said):
            tlfx.lambda_gap(target, given)
    with pytest.raises(TargetError, match=r"target is a Tensor, expected the tlfx\.MixedTarget"):
        tlfx.lambda_gap(target.area(), target.area())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reduction='sum' is unknown, expected 'mean' or 'none'"):
        tlfx.lambda_gap(target, target.area(), reduction="sum")  # type: ignore[arg-type]
