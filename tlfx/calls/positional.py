"""Labels given by position: ``model(images, labels)``, where labels are a tensor and not a mixed target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from tlfx.capture.model_class import class_name, own_forward, own_parameters
from tlfx.errors import TargetError, TlfxError, a_type

__all__ = ["plain_call", "split_labels"]

BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def split_labels(model: nn.Module, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Arguments of the model's own forward, and the labels after them, if there is one argument too many."""
    parameters = own_parameters(model)
    if any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        return args, []
    taken = sum(p.kind in BY_POSITION for p in parameters)
    if len(args) != taken + 1 or not _are_labels(args[-1]):
        return args, []
    return args[:-1], [args[-1]]


def plain_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The model's own forward.

    Raises TargetError if it fails and labels were given for an optional argument, such as a mask of the attention, or
    anything but a tensor of labels after all arguments.
    """
    if len(args) < 2 or torch.compiler.is_compiling():  # a compiled graph has no handlers of errors
        return own_forward(model)(model, *args, **kwargs)
    try:
        return own_forward(model)(model, *args, **kwargs)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, TlfxError | torch.OutOfMemoryError):
            raise
        for name, labels in _mistaken(model, args):
            raise TargetError(_explained(class_name(model), name, labels, error)) from error
        raise


def _mistaken(model: nn.Module, args: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Optional parameters of the model's own forward that labels of the batch were given for, or that it lacks."""
    parameters = own_parameters(model)
    is_extra = len(args) == len(parameters) + 1 and all(p.kind in BY_POSITION for p in parameters)
    if is_extra and _are_labels(args[-1], args[0]):
        yield "", args[-1]
    for parameter, argument in zip(parameters[1:], args[1:], strict=False):
        takes_labels = parameter.default is Parameter.empty or "label" in parameter.name or "target" in parameter.name
        if parameter.kind in BY_POSITION and not takes_labels and _are_labels(argument, args[0]):
            yield parameter.name, argument


def _are_labels(x: Any, images: Any = None) -> bool:
    """Whether an argument looks like labels, of a batch of images if they are given."""
    if images is not None and not isinstance(x, Tensor):
        return isinstance(x, Sized) and isinstance(images, Tensor) and len(x) == len(images)
    if not isinstance(x, Tensor) or (x.is_floating_point() and x.dim() > 2):
        return False
    return images is None or (isinstance(images, Tensor) and x.dim() > 0 and len(x) == len(images))


def _explained(kind: str, name: str, labels: Any, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    given = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else a_type(labels)
    place = f"for its argument {name}, which looks like the labels of images," if name else "after all its arguments"
    return (
        f"{kind} was given {given} {place} and failed: {reason}. Pass labels as model(images, target=labels), a tensor "
        "(batch,) or (batch, classes). If timm.data.Mixup has mixed them, use tlfx.mix.Mixup instead: an aligned "
        "target needs the mask"
    )
