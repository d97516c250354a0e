"""The λ gap: how far alignment moves the share of a label from its share of the area."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from tlfx.errors import InputError, TargetError, a_type
from tlfx.losses import class_axis
from tlfx.mix.labels import hard_or_soft
from tlfx.mix.target import MixedTarget

__all__ = ["lambda_gap"]


@torch.no_grad()
def lambda_gap(target: MixedTarget, soft_target: Tensor, *, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Mean |λ − λ_area| over the mixed pairs of different classes of a batch: a scalar that any logger takes.

    λ is the share of the first label in `soft_target`, λ_area its share of the mask. Label smoothing does not change
    the gap. For a mixture of more than two images, |λ − λ_area| is half the L1 distance between the shares of the
    classes. For a dense output it is the mean over all positions.

    Args:
        target: the target that was given to the model.
        soft_target: the target that the model returned for one output: (batch, classes), (batch, tokens, classes) or
            (batch, classes, height, width).
        reduction: ``"mean"`` for a scalar, NaN for a batch without such pairs; ``"none"`` for the gap of each image,
            (batch,), with NaN for images that are not a mixture of different classes. Neither waits for a GPU.

    InputError for another reduction. TargetError if an argument has another type, or the targets differ in their number
    of images or classes.

    >>> mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    >>> target = MixedTarget(first=torch.tensor([0]), second=torch.tensor([1]), mask=mask, num_classes=2)
    >>> lambda_gap(target, torch.tensor([[0.35, 0.65]]))
    tensor(0.1000)
    """
    if reduction not in ("mean", "none"):
        raise InputError(f"reduction={reduction!r} is unknown, expected 'mean' or 'none'")
    _check(target, soft_target)
    soft = soft_target.float().movedim(class_axis(soft_target), -1)
    soft = soft.reshape(len(target), -1, target.num_classes)  # (batch, positions, classes)
    distance = (soft - target.area().unsqueeze(1)).abs().sum(-1).mean(1)
    largest = _largest_distance(target)
    gaps = torch.where(largest > 0, distance / largest, torch.nan)
    return gaps if reduction == "none" else gaps.nanmean()


def _largest_distance(target: MixedTarget) -> Tensor:
    """The largest L1 distance between two labels that both have a share of the area, (batch,); 0 if all are equal."""
    labels = [hard_or_soft(label, target.num_classes, target.smoothing) for label in target.labels.unbind(1)]
    shares = target.mask.flatten(2).mean(2)
    parts = shares.unbind(1) if "labels" in target else (shares[:, 0], 1.0 - shares[:, 0])
    distances = [
        (labels[a] - labels[b]).abs().sum(1) * ((parts[a] > 0) & (parts[b] > 0))
        for a, b in combinations(range(len(labels)), 2)
    ]
    return torch.stack(distances).amax(0)


def _check(target: object, soft_target: object) -> None:
    """TargetError unless these are a mixed target and the soft target of one output for the same images and classes."""
    if not isinstance(target, MixedTarget):
        raise TargetError(
            f"the target is {a_type(target)}, expected the tlfx.MixedTarget that a mixer returned: "
            "without its mask, λ_area is unknown"
        )
    if not isinstance(soft_target, Tensor):
        raise TargetError(
            f"the soft target is {a_type(soft_target)}, expected the tensor that model(images, target) "
            "returned for one of its outputs"
        )
    expected = (len(target), target.num_classes)
    axes = soft_target.dim() > 1
    given = (len(soft_target), soft_target.shape[class_axis(soft_target)]) if axes else tuple(soft_target.shape)
    if given != expected:
        raise TargetError(
            f"the soft target has shape {tuple(soft_target.shape)}, expected {expected[0]} images and {expected[1]} "
            "classes, as the target has; pass target and soft target of the same call"
        )
