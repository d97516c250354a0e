"""Targets of an aligned call: their checks against images and outputs, and the soft targets of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tlfx.capture.model_class import class_name
from tlfx.errors import InputError, TargetError, a_type, counted
from tlfx.mix.labels import check_label_shape, check_labels
from tlfx.mix.target import MixedTarget, ShareTarget
from tlfx.propagate.outputs import OutputLabel
from tlfx.runtime import merge_batch, split_batch

__all__ = [
    "check_classes",
    "check_mixed",
    "check_plain",
    "declared_classes",
    "soft_mixed",
    "soft_plain",
]


def check_mixed(target: MixedTarget, images: Tensor, size: tuple[int, ...]) -> None:
    """TargetError unless a mixed target fits the images, whose pixels have ``size``; InputError for images without
    data."""
    if images.is_meta:
        raise InputError("images are on the meta device, without data to compute labels from; use tlfx.inspect(model)")
    mask = target.get("mask")
    if isinstance(mask, Tensor) and mask.device != images.device:
        raise _apart(mask, images)
    # a mask (batch, K, height, width) holds for all frames of video
    flat = isinstance(mask, Tensor) and images.dim() == 5 and target.mask.dim() == 4
    target.check(images.shape[0], size[1:] if flat else size, values=_is_readable(images))


def check_plain(target: Any, images: Tensor) -> None:
    """TargetError unless an unmixed target has a label for each image, on its device."""
    if not isinstance(target, Tensor):
        raise TargetError(
            f"the target is {a_type(target)}, expected a tlfx.MixedTarget from a mixer, integer labels "
            "(batch,) or soft labels (batch, classes)"
        )
    check_label_shape(target, len(images))
    if target.device != images.device:
        raise _apart(target, images)


def _apart(target: Tensor, images: Tensor) -> TargetError:
    return TargetError(f"the target is on {target.device}, the images on {images.device}: use target.to(images.device)")


def check_classes(model: nn.Module, target: Any, outputs: Sequence[OutputLabel | None]) -> str | None:
    """TargetError if the model declares a number of classes, one of its outputs has it, and the target has another.

    A model that returns features, which a classifier outside of it reads, has no output of that size. Returns a warning
    if a model that declares none has outputs of another number than the target, since they may be features.
    """
    classes, declared = _classes_of(target), declared_classes(model)
    counts = sorted({o.classes for o in outputs if o is not None})
    if classes is None or classes == declared or (declared is not None and declared not in counts):
        return None
    other = counted(classes, "class")
    if declared is None and classes in counts:
        return None
    if declared is None:
        return (
            f"the target has {other}, but {class_name(model)} returns {' and '.join(map(str, counts))} channels. If "
            f"these are logits, build the mixer with num_classes={counts[0]}, or the model for {other}"
        )
    given = f"num_classes={classes}" if isinstance(target, MixedTarget) else f"shape {tuple(target.shape)}"
    raise TargetError(
        f"the target has {given}, but {class_name(model)} has logits of {declared} classes; build the mixer with "
        f"num_classes={declared}, or the model for {other}"
    )


def declared_classes(model: nn.Module) -> int | None:
    """The number of classes that a model declares as ``num_classes``, or as ``config.num_labels``; None if it does not.

    >>> model = nn.Flatten()
    >>> model.num_classes = 10
    >>> declared_classes(model)
    10
    """
    for holder, name in ((model, "num_classes"), (getattr(model, "config", None), "num_labels")):
        declared = getattr(holder, name, None)
        if isinstance(declared, int):
            return declared
    return None


def soft_mixed(target: MixedTarget, share: Tensor, output: OutputLabel) -> Tensor:
    """Soft targets of an output from the share of the first image, or of each of K, at each of its positions; an output
    with several rows for each image (crops) has a target for each row."""
    soft = target.soften(split_batch(share if "labels" in target else share[..., 0], output.where))
    return _placed(merge_batch(soft, output.where), output, is_share=isinstance(target, ShareTarget))


def soft_plain(target: Tensor, leaf: Tensor, output: OutputLabel) -> Tensor:
    """Soft targets of an output from labels that hold at each of its positions."""
    classes = target.shape[-1] if target.is_floating_point() else output.classes
    check_labels(target, classes, values=_is_readable(target))
    # both images have the same labels: any share gives these
    same = MixedTarget(first=target, second=target, mask=torch.ones(1, 1, 1, 1), num_classes=classes)
    positions = [s for i, s in enumerate(leaf.shape) if i != output.class_axis]
    return soft_mixed(same, torch.ones(*positions, 1, device=target.device), output)


def _placed(soft: Tensor, output: OutputLabel, is_share: bool) -> Tensor:
    """Soft targets (…, classes) with the classes on the axis that they have in the output."""
    if output.class_axis is not None:
        return soft.movedim(-1, output.class_axis)
    if soft.shape[-1] == 1:
        return soft.squeeze(-1)
    if is_share:
        return soft
    raise TargetError(
        f"the target has {soft.shape[-1]} classes, but the output (batch,) has a single logit for each image; use "
        "soft labels (batch, 1) and a mixer with num_classes=1, or a model with a logit for each class"
    )


def _classes_of(target: Any) -> int | None:
    """The number of classes of a target; None if it fits any number."""
    if isinstance(target, ShareTarget):
        return None
    if isinstance(target, MixedTarget):
        return target.num_classes
    return int(target.shape[-1]) if target.is_floating_point() else None


def _is_readable(tensor: Tensor) -> bool:
    """Whether values may be checked: to read them waits for a GPU, and breaks a compiled graph."""
    return not (tensor.is_cuda or tensor.is_meta or torch.compiler.is_compiling())
