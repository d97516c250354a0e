"""Labels of images, integers or soft labels: their checks and their conversion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tlfx.errors import TargetError, a_type

__all__ = ["check_label_shape", "check_labels", "hard_or_soft", "not_a_tensor"]


def hard_or_soft(target: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Soft labels, float32 (…, num_classes), from int labels (…) or soft labels (…, num_classes), smoothed as in timm.

    >>> hard_or_soft(torch.tensor([1]), num_classes=2, smoothing=0.2)
    tensor([[0.1000, 0.9000]])
    """
    soft = target if target.is_floating_point() else F.one_hot(target.long(), num_classes)
    return soft.float() * (1.0 - smoothing) + smoothing / num_classes


def check_labels(labels: object, num_classes: int, *, name: str = "target", values: bool = True) -> None:
    """TargetError unless `labels` are int (B,) in [0, num_classes) or soft float (B, num_classes).

    `values=False` omits the check of the range, which synchronises a GPU.
    """
    if not isinstance(labels, Tensor):
        raise TargetError(not_a_tensor(name, labels))
    if labels.dtype == torch.bool or labels.is_complex():
        raise TargetError(f"{name} has dtype {labels.dtype}, expected int64 labels or float soft labels")
    if labels.is_floating_point():
        if labels.dim() == 0 or labels.shape[-1] != num_classes:
            raise TargetError(
                f"{name} is {labels.dtype} of shape {tuple(labels.shape)}, expected soft labels "
                f"(batch, {num_classes}); use {name}.long() if they are class numbers"
            )
    elif values and labels.numel():
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= num_classes:
            one_logit = f"; for a single logit, pass {name}.float()[:, None]" if num_classes == 1 else ""
            raise TargetError(
                f"{name} holds labels from {low} to {high}, expected 0 to {num_classes - 1}; "
                f"check the labels or num_classes={num_classes}{one_logit}"
            )


def check_label_shape(labels: Tensor, batch: int, *, name: str = "target") -> None:
    """TargetError unless `labels` are one for each image: integers (batch,) or soft labels (batch, classes).

    The message says what other labels of images look like, and how to convert them.
    """
    if labels.dim() != (2 if labels.is_floating_point() else 1):
        raise TargetError(
            f"{name} is {labels.dtype} of shape {tuple(labels.shape)}, expected integer labels (batch,) or soft labels "
            f"(batch, classes); {_remedy(labels, name)}"
        )
    if len(labels) != batch:
        raise TargetError(
            f"{name} of shape {tuple(labels.shape)} was given with {batch} images, expected one label per image; it "
            "seems to come from another batch"
        )


def _remedy(labels: Tensor, name: str) -> str:
    """How labels of a wrong shape are converted, by what they look like."""
    if labels.dim() == 0:
        return f"use {name}.expand(batch) if all images have this label"
    if labels.dim() > 2:
        return (
            "a mixed image has one label for each of its images; for maps of labels, mix them with the images and use "
            "tlfx.mix.ShareTarget, the shares of the images"
        )
    if labels.dim() == 1:
        return f"use {name}.long() if they are class numbers, or {name}[:, None] if they are values of a single output"
    if labels.shape[1] == 1:
        return f"use {name}.squeeze(1)"
    return f"use {name}.argmax(1) if they are one-hot, or {name}.float() if several classes may be 1"


def not_a_tensor(name: str, value: object) -> str:
    """The error message for a missing item or one of a wrong type."""
    given = "missing" if value is None else a_type(value)
    return f"{name} is {given}, expected a torch.Tensor"
