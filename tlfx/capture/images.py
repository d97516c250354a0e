"""The images among the arguments of a call: those that the mask of a target belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from tlfx._torch import tree_leaves
from tlfx.capture.arguments import Call, check_floating, is_image
from tlfx.capture.model_class import class_name, own_parameters
from tlfx.errors import InputError
from tlfx.runtime import positions

__all__ = ["call_for", "check_names", "choose_images", "names_of"]


def check_names(images: str | int | Sequence[str | int] | None) -> tuple[str | int, ...] | None:
    """Names or positions of arguments as a tuple, None for None. Raises InputError for anything else."""
    if images is None:
        return None
    names = (images,) if isinstance(images, str | int) else images
    if not isinstance(names, Sequence) or not names or not all(isinstance(x, str | int) for x in names):
        raise InputError(f"images={images!r}: expected names or positions of arguments, such as 'image' or 0")
    return tuple(names)


def call_for(example: Any, model: nn.Module, wanted: Sequence[str | int] | None = None) -> Call:
    """The call that an example stands for (images, a tuple of arguments, a dict of keyword arguments or a Call itself),
    with the images that :func:`choose_images` chooses without a mask."""
    return example if isinstance(example, Call) else choose_images(Call.from_example(example), model, wanted)


def choose_images(
    call: Call, model: nn.Module, wanted: Sequence[str | int] | None = None, mask: Tensor | None = None
) -> Call:
    """The call with the images chosen that are mixed: the arguments ``wanted``, by name or by position, or the one
    tensor that a mask (batch, K, *size) fits; without a mask, the first tensor that can be images.

    A mask (batch, K, frames, height, width) tells which axis of video holds the frames.

    Raises InputError for several tensors that fit, for names of no argument, for images of several sizes, and for video
    with as many channels as frames whose mask differs from frame to frame.
    """
    if wanted is not None:
        return _with_layout(_named(call, model, wanted), mask)
    fitting = [i for i, x in enumerate(call.tensors) if is_image(x) and _fits(x, call.images, mask)]
    if len(fitting) > 1:
        raise InputError(_ambiguous(call, model, fitting))
    chosen = call.with_images(fitting) if fitting else call
    check_floating(chosen.images)
    return _with_layout(chosen, mask)


def _with_layout(call: Call, mask: Tensor | None) -> Call:
    """The call with the axis of frames that a mask of video shows; channels come first by default."""
    shape = call.images.shape
    if mask is None or not len(shape) == mask.dim() == 5 or mask.shape[2:] != positions(shape, frames_first=True):
        return call.with_images(call.places)
    if mask.shape[2:] == shape[2:]:
        raise InputError(
            f"images have shape {tuple(shape)} and the mask {tuple(mask.shape)}, so that axis 1 or axis 2 may hold "
            "the frames: pass a mask (batch, 1, height, width), the same for all frames, or another number of frames"
        )
    return call.with_images(call.places, frames_first=True)


def names_of(call: Call, model: nn.Module) -> list[str]:
    """The names of the tensors of a call in the model's own forward; in dictionaries, with their keys after dots."""
    positional = [parameter.name for parameter in own_parameters(model)]
    given = (*zip(positional, call.args, strict=False), *call.kwargs.items())
    return [name for argument, value in given for name in _names_in(argument, value)]


def _names_in(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _names_in(f"{name}.{key}", part)
    else:
        yield from (name for x in tree_leaves(value) if isinstance(x, Tensor))


def _named(call: Call, model: nn.Module, wanted: Sequence[str | int]) -> Call:
    names = names_of(call, model)
    places: list[int] = []
    for one in wanted:
        argument = _argument_at(call, model, one) if isinstance(one, int) else one
        # "batch.image" goes by its full name, by its argument and by its key
        of_one = [
            i for i, name in enumerate(names) if argument in (name, name.partition(".")[0], name.rpartition(".")[2])
        ]
        if not of_one:
            raise InputError(
                f"images={one!r} names no tensor among the arguments of {class_name(model)}: expected one of "
                f"{', '.join(dict.fromkeys(names)) or 'none'}"
            )
        places += [i for i in of_one if i not in places]
    chosen = call.with_images(places)
    for i in places:
        _check_alike(names[i], call.tensors[i], chosen.images)
    return chosen


def _argument_at(call: Call, model: nn.Module, position: int) -> str:
    names = [parameter.name for parameter in own_parameters(model)][: len(call.args)]
    if not 0 <= position < len(names):
        raise InputError(
            f"images={position}: {class_name(model)} was called with {len(call.args)} arguments by position, expected "
            "a number from 0 on, or a name"
        )
    return names[position]


def _check_alike(name: str, x: Tensor, first: Tensor) -> None:
    """Raise InputError for an argument that cannot be images, or that one mask does not fit together with the first."""
    if not is_image(x):
        raise InputError(
            f"images={name!r} has shape {tuple(x.shape)}, expected (batch, channels, height, width) or, for video, "
            "(batch, channels, frames, height, width)"
        )
    check_floating(x)
    if (x.shape[0], x.shape[2:]) != (first.shape[0], first.shape[2:]):
        raise InputError(
            f"images={name!r} has shape {tuple(x.shape)}, and other images have {tuple(first.shape)}: all need the "
            "same batch, height and width, since one mask says how they were mixed"
        )


def _fits(x: Tensor, first: Tensor, mask: Tensor | None) -> bool:
    """Whether a mask belongs to images ``x``; without one, whether they have the size of the first."""
    if mask is None:
        return x is first or (x.is_floating_point() and (x.shape[0], x.shape[2:]) == (first.shape[0], first.shape[2:]))
    batch = len(mask) in (1, len(x)) if mask.dim() else False
    # of video, a mask for all frames, or one that has the frames behind or before the channels
    sizes = [x.shape[2:], *([x.shape[3:], positions(x.shape, frames_first=True)] if x.dim() == 5 else [])]
    return batch and x.is_floating_point() and mask.shape[2:] in sizes


def _ambiguous(call: Call, model: nn.Module, fitting: Sequence[int]) -> str:
    names = names_of(call, model)
    shapes = ", ".join(f"{names[i]} {tuple(call.tensors[i].shape)}" for i in fitting)
    both = [names[i] for i in fitting]
    return (
        f"{class_name(model)} was called with {len(fitting)} tensors that may be the mixed images: {shapes}. Name "
        f"them: tlfx.align(model, images={both[0]!r}), or images={both!r} if all were mixed by the same mask"
    )
