"""Targets against the outputs of a model: numbers of classes, single logits, models and images without data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CLASSES, mixture, pictures, vit
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import tlfx
from tlfx.mix import CutMix, Mixup, ShareTarget

LABELS = torch.tensor([0, 1, 2])


def mixed(num_classes: int) -> tuple[Tensor, tlfx.MixedTarget]:
    images, target = CutMix(num_classes=num_classes)(pictures(), LABELS)
    return images, target


class Single(nn.Module):
    """One logit for each image, and optionally a second output."""

    def __init__(self, *, logits: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CLASSES, 4, 4)
        self.logits = logits

    def forward(self, images: Tensor) -> Any:
        x = self.stem(images).mean((2, 3))
        return (x, x.square().mean(1)) if self.logits else x.mean(1)


# numbers of classes


@pytest.mark.parametrize("more", [2, 1000])
def test_a_mixer_for_another_number_of_classes(more: int) -> None:
    num_classes = CLASSES + more
    words = f"has num_classes={num_classes}, but VisionTransformer has logits of {CLASSES} classes; build the mixer"
    with pytest.raises(tlfx.TargetError, match=words):
        tlfx.align(vit())(*mixed(num_classes))


def test_soft_labels_of_another_number_of_classes() -> None:
    with pytest.raises(tlfx.TargetError, match=r"has shape \(3, 4\), but VisionTransformer has logits of 5 classes"):
        tlfx.align(vit())(pictures(), target=torch.full((3, 4), 0.25))


def test_another_number_than_that_of_an_undeclared_output_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """It may be features, which a classifier outside of the model reads."""
    model = tlfx.align(Single(logits=True))
    for _ in range(2):
        model(*mixed(CLASSES + 2))
        model(*mixed(CLASSES))
    (record,) = [record for record in caplog.records if record.name == "tlfx"]
    assert (
        f"the target has {CLASSES + 2} classes, but Single returns {CLASSES} channels. If these are logits, build"
        in (record.getMessage())
    )


def test_targets_on_another_device_than_the_images() -> None:
    images, target = mixed(CLASSES)
    for given in (target.to("meta"), torch.zeros(3, dtype=torch.int64, device="meta")):
        with pytest.raises(tlfx.TargetError, match=r"the target is on meta, the images on cpu: use target.to\(images"):
            tlfx.align(vit())(images, target=given)


def test_features_and_shares_fit_any_number() -> None:
    features, soft = tlfx.align(vit(num_classes=0))(*mixed(7))
    assert features.shape == (3, 16)
    assert soft.shape == (3, 7)
    target = mixture()
    assert isinstance(target.cpu(), ShareTarget)
    shares = tlfx.align(vit())(pictures(), target)[1]
    assert shares.shape == (3, 2)


# one logit for each image


def test_one_logit_for_each_image() -> None:
    images, target = Mixup(0.0, 1.0, label_smoothing=0.0, num_classes=1)(
        pictures(4), torch.tensor([[0.0], [1], [1], [0]])
    )
    model = tlfx.align(Single())
    logits, soft = model(images, target)
    assert logits.shape == soft.shape == (4,)
    assert torch.equal(logits, Single()(images))
    torch.testing.assert_close(soft, target.area().squeeze(1))  # patches of the mean are uniform
    binary_cross_entropy_with_logits(logits, soft).backward()
    plain = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    assert torch.equal(model(images, target=plain)[1], plain.squeeze(1))


def test_one_logit_and_several_classes() -> None:
    with pytest.raises(tlfx.TargetError, match=r"has 5 classes, but the output \(batch,\) has a single logit for each"):
        tlfx.align(Single())(*mixed(CLASSES))
    with pytest.raises(tlfx.TargetError, match=r"for a single logit, pass target.float\(\)\[:, None\]"):
        tlfx.align(Single())(pictures(), target=LABELS)


class Crops(nn.Module):
    """The logits of both halves of each image: rows by crop and then image, or by image and then crop."""

    def __init__(self, by_image: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_image, self.head = by_image, nn.Conv2d(3, CLASSES, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        halves = torch.stack(images.chunk(2, -1), 1 if self.by_image else 0)
        logits: Tensor = self.head(halves.flatten(0, 1)).mean((2, 3))
        return logits


@pytest.mark.parametrize("by_image", [True, False])
def test_several_rows_for_each_image(by_image: bool) -> None:
    """Each row has the target of its crop: here the left half shows one image alone, and the right half both."""
    model = tlfx.align(Crops(by_image))
    mask = torch.ones(2, 1, 8, 8)
    mask[..., -2:] = 0
    labels = torch.tensor([0, 1])
    given = tlfx.MixedTarget(first=labels, second=labels + 1, mask=mask, num_classes=CLASSES, smoothing=0.0)
    _, soft = model(torch.rand(2, 3, 8, 8), given)
    whole, half = torch.eye(CLASSES)[:2], torch.eye(CLASSES)[:2] / 2 + torch.eye(CLASSES)[1:3] / 2
    rows = torch.stack((whole, half), 1 if by_image else 0).flatten(0, 1)
    torch.testing.assert_close(soft, rows)
    _, plain = model(torch.rand(2, 3, 8, 8), target=labels)
    assert torch.equal(plain, torch.stack((whole, whole), 1 if by_image else 0).flatten(0, 1))


def test_a_number_beside_logits_has_no_target() -> None:
    (logits, statistic), soft = tlfx.align(Single(logits=True))(*mixed(CLASSES))
    assert soft[0].shape == logits.shape
    assert statistic.shape == (3,)
    assert soft[1] is None


def test_smoothing_of_a_single_class() -> None:
    with pytest.raises(tlfx.TargetError, match=r"smoothing is 0.1 for a single class.* or Mixup\(multi_label=True\)"):
        Mixup(num_classes=1)(pictures(2), torch.rand(2, 1))


# without data


@pytest.mark.parametrize(
    ("lazy", "name"),
    [(nn.LazyConv2d(3, 1), "parameter 0.weight"), (nn.LazyBatchNorm2d(affine=False), "buffer 0.running_mean")],
)
def test_lazy_modules(lazy: nn.Module, name: str) -> None:
    model = tlfx.align(nn.Sequential(lazy, nn.Flatten(), nn.Linear(pictures()[0].numel(), CLASSES)))
    with pytest.raises(tlfx.CaptureError, match=rf"uninitialised {name}.* of a lazy module.* call model\(images\)"):
        model(*mixed(CLASSES))
    model(pictures())
    assert model(*mixed(CLASSES))[1].shape == (3, CLASSES)


def test_models_and_images_on_the_meta_device() -> None:
    model = tlfx.align(Single().to("meta"))
    images, target = mixed(CLASSES)
    with pytest.raises(
        tlfx.CaptureError, match=r"parameter stem.weight on the meta device.* model.to_empty\(device='cpu'"
    ):
        model(images, target)
    for device in ("meta", "cpu"):
        with pytest.raises(tlfx.InputError, match="images are on the meta device, without data to compute labels from"):
            tlfx.align(Single().to(device))(images.to("meta"), target.to("meta"))
