"""Training tasks of timm for aligned models."""

from __future__ import annotations

import copy
from functools import partial

import helpers
import pytest
import timm.task
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import tlfx
from tlfx.integrations.timm import ClassificationTask, MultiLabelClassificationTask
from tlfx.mix import CutMix, Mixup

vit = partial(helpers.vit, qkv_std=1.0, num_classes=3)
ALIGNED = tlfx.align(vit())  # one for all tests, so that it is captured once


def aligned() -> VisionTransformer:
    """The aligned model, as it was first."""
    ALIGNED.load_state_dict(vit().state_dict())
    ALIGNED.zero_grad()
    return ALIGNED


def plain_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 0])


def test_the_criterion_gets_the_target_that_reaches_the_output() -> None:
    task = ClassificationTask(aligned(), criterion_kwargs={"soft_targets": True}, verbose=False)
    images, target = CutMix(num_classes=3, generator=torch.Generator().manual_seed(1))(*plain_batch())
    result = task(images, target)
    logits, soft = aligned()(images, target)
    assert torch.equal(result["output"], logits)
    torch.testing.assert_close(result["loss"], -(soft * logits.softmax(1).log()).sum(1).mean())
    assert (soft - target.area()).abs().max() > 1e-2


def test_unmixed_labels_are_those_of_timm() -> None:
    images, labels = plain_batch()
    ours = ClassificationTask(aligned(), verbose=False)(images, labels)
    theirs = timm.task.ClassificationTask(vit(), verbose=False)(images, labels)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_many_labels_take_the_binary_loss_of_the_aligned_target() -> None:
    labels = F.one_hot(torch.tensor([[0, 1], [1, 1], [2, 0], [2, 1]]), 3).amax(1).float()
    images, target = Mixup(mixup_alpha=0, cutmix_alpha=1, num_classes=3, multi_label=True)(plain_batch()[0], labels)
    task = MultiLabelClassificationTask(
        aligned(), criterion_kwargs={"soft_targets": True, "loss_type": "bce"}, verbose=False
    )
    logits, soft = aligned()(images, target)
    expected = -(soft * F.logsigmoid(logits) + (1 - soft) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(task(images, target)["loss"], expected)
    assert isinstance(task.create_evaluator(), timm.task.MultiLabelClassificationEvaluator)  # type: ignore[no-untyped-call]


def test_checkpoints_and_ema_are_those_of_timm() -> None:
    task = ClassificationTask(aligned(), criterion_kwargs={"soft_targets": True}, verbose=False)
    task.setup_ema(decay=0.5)
    task(*CutMix(num_classes=3)(*plain_batch()))["loss"].backward()
    torch.optim.SGD(task.get_clip_parameters(), lr=1.0).step()
    task.update_ema()
    state, ema = task.get_checkpoint_state(), task.get_checkpoint_state(ema=True)
    plain = vit()
    start = copy.deepcopy(plain.state_dict())
    plain.load_state_dict(state["state_dict"])
    plain.load_state_dict(ema["state_dict_ema"])
    for name, value in ema["state_dict_ema"].items():
        torch.testing.assert_close(value, (start[name] + state["state_dict"][name]) / 2)


def test_a_model_that_is_not_aligned() -> None:
    with pytest.raises(tlfx.InputError, match=r"VisionTransformer is not aligned, expected the model that tlfx.align"):
        ClassificationTask(vit())
