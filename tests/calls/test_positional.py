"""Labels given by position: after the arguments of a forward, or in the place of an optional one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CLASSES, pictures, vit
from torch import Tensor, nn

import tlfx

HARD, SOFT = torch.tensor([0, 1, 2]), torch.full((3, CLASSES), 1 / CLASSES)


class Net(nn.Module):
    """A forward of images alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, CLASSES, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images).mean((2, 3))


class Conditional(Net):
    """A forward that takes a class of each image, as generative models do, and one more optional number."""

    def forward(self, images: Tensor, condition: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        if condition.is_floating_point():
            raise ValueError("condition holds class numbers")
        return super().forward(images) * scale + condition[:, None]


class Masked(Net):
    """A forward with an optional tensor."""

    def forward(self, images: Tensor, weight: Tensor | None = None) -> Tensor:
        return super().forward(images) * (1 if weight is None else weight.view(3, 1))


class Labelled(Net):
    """A forward that takes labels itself, and does not accept those of a wrong type."""

    def forward(self, images: Tensor, labels: Any = None) -> Tensor:
        return super().forward(images) + torch.nn.functional.one_hot(labels, CLASSES)


class Open(Net):
    """A forward that takes any number of tensors."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return super().forward(tensors[0])


@pytest.mark.parametrize("labels", [HARD, SOFT])
def test_labels_after_all_arguments_are_the_target(labels: Tensor) -> None:
    model = tlfx.align(Net())
    logits, soft = model(pictures(), labels)
    expected = model(pictures(), target=labels)
    assert torch.equal(logits, expected[0])
    assert torch.equal(soft, expected[1])


def test_labels_after_optional_arguments() -> None:
    model = tlfx.align(Masked())
    _, soft = model(pictures(), torch.ones(3), HARD)
    assert torch.equal(soft.argmax(1), HARD)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(2).long(), r"target of shape \(2,\) was given with 3 images"),
        (torch.zeros(3, 1).long(), r"use target.squeeze\(1\)"),
        (torch.zeros(3, 1, 16, 16).long(), "for maps of labels, mix them with the images"),
    ],
)
def test_other_labels_after_all_arguments_are_refused(labels: Tensor, words: str) -> None:
    with pytest.raises(tlfx.TargetError, match=words):
        tlfx.align(Net())(pictures(), labels)


@pytest.mark.parametrize("extra", [pictures(), 3, None])
def test_other_arguments_too_many_are_the_error_of_python(extra: Any) -> None:
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        tlfx.align(Net())(pictures(), extra)


@pytest.mark.parametrize("labels", [HARD, SOFT], ids=["hard", "soft"])
def test_labels_in_the_place_of_an_optional_argument(labels: Tensor) -> None:
    """timm's ViT takes a mask of the attention there; its own Mixup returns soft labels."""
    model = tlfx.align(vit())
    with pytest.raises(tlfx.TargetError) as caught:
        model(pictures(), labels)
    message = str(caught.value)
    assert "VisionTransformer was given torch." in message
    assert "for its argument attn_mask, which looks like the labels of images, and failed: " in message
    assert "Pass labels as model(images, target=labels)" in message
    assert "use tlfx.mix.Mixup instead" in message
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("labels", [torch.zeros(3, 16, 16).long(), torch.zeros(3, 1, 16, 16).long(), [0, 1, 2]])
def test_maps_and_lists_of_labels(labels: Any) -> None:
    model = tlfx.align(vit())
    with pytest.raises(tlfx.TargetError, match=r"for its argument attn_mask, .* Pass labels as model\(images, target="):
        model(pictures(), labels)


def test_soft_labels_of_a_training_step_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """timm's Mixup, left in place, mixes the images and says nothing of the mask."""
    model = tlfx.align(Net())
    for _ in range(2):
        model(pictures(), SOFT)
        model.eval()(pictures(), SOFT)
        model.train()
    (record,) = [record for record in caplog.records if record.name == "tlfx"]
    assert record.getMessage().endswith("If timm.data.Mixup has mixed the images, use tlfx.mix.Mixup instead")


def test_a_list_of_labels_after_all_arguments() -> None:
    with pytest.raises(
        tlfx.TargetError, match=r"was given a list after all its arguments and failed: .* a tensor \(batch"
    ):
        tlfx.align(Net())(pictures(), [0, 1, 2])


def test_a_forward_that_takes_a_second_tensor_is_not_disturbed() -> None:
    model = tlfx.align(Conditional())
    plain = Conditional()
    assert torch.equal(model(pictures(), HARD), plain(pictures(), HARD))
    assert torch.equal(model(pictures(), HARD, 2.0), plain(pictures(), HARD, 2.0))
    with pytest.raises(ValueError, match="condition holds class numbers"):
        model(pictures(), SOFT)
    masked = tlfx.align(Masked())
    assert torch.equal(masked(pictures(), torch.ones(3)), Masked()(pictures()))
    assert torch.equal(masked(pictures(), HARD), Masked()(pictures(), HARD))
    assert torch.equal(tlfx.align(Open())(pictures(), HARD), Open()(pictures()))
    with pytest.raises(RuntimeError, match="one_hot"):
        tlfx.align(Labelled())(pictures(), SOFT)


def test_memory_that_runs_out_is_not_explained() -> None:
    class Large(Net):
        def forward(self, images: Tensor, weight: Tensor | None = None) -> Tensor:
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        tlfx.align(Large())(pictures(), HARD)
