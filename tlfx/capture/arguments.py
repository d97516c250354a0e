"""A call of a model: its arguments, the images among them, and the key of captures for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlfx._torch import TreeSpec, tree_flatten
from tlfx.capture.describe import ATOMS, IGNORED, describe
from tlfx.errors import InputError
from tlfx.runtime import positions

__all__ = ["Call", "check_floating", "is_channels_last", "is_image"]


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call, flattened once.

    Attributes:
        args, kwargs: the arguments, unchanged.
        leaves, spec: all arguments as a flat list, and their structure.
        tensors: the tensors among the leaves, in the order in which a captured graph takes them.
        places: the tensors that are images, mixed by one mask: the first with a height and a width, unless
            :func:`tlfx.capture.images.choose_images` has chosen others.
        frames_first: whether the images are video (batch, frames, channels, height, width), as their mask shows.

    >>> call = Call.of(torch.zeros(2, 3, 8, 8), scale=0.5)
    >>> call.batch, call.leaves[1:]
    (2, [0.5])
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: list[Any]
    spec: TreeSpec
    tensors: list[Tensor]
    places: tuple[int, ...]
    frames_first: bool = False

    @staticmethod
    def of(*args: Any, **kwargs: Any) -> Call:
        """A call with these arguments. Raises InputError without floating-point images among them."""
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        return Call(args, kwargs, leaves, spec, tensors, (_place_of_images(tensors),))

    @staticmethod
    def from_example(example: Any) -> Call:
        """A call with images, a tuple of arguments or a dict of keyword arguments. Raises InputError as :meth:`of`."""
        if isinstance(example, dict):
            return Call.of(**example)
        return Call.of(*example) if isinstance(example, tuple | list) else Call.of(example)

    def with_images(self, places: Sequence[int], frames_first: bool = False) -> Call:
        """The same call with other tensors as images, or with another order of their axes."""
        if (tuple(places), frames_first) == (self.places, self.frames_first):
            return self
        return replace(self, places=tuple(places), frames_first=frames_first)

    @property
    def images(self) -> Tensor:
        """The (first) images."""
        return self.tensors[self.places[0]]

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the images, after the number of frames of video."""
        return positions(self.images.shape, self.frames_first)

    @property
    def objects(self) -> list[tuple[str, Any]]:
        """The arguments that are neither tensors nor plain data, each with a name for messages."""
        others = [x for x in self.leaves if not isinstance(x, (Tensor, *ATOMS))]
        return [(f"an argument of class {type(x).__name__}", x) for x in others]

    @property
    def key(self) -> Hashable:
        """The part of a call that a capture depends on: all but the batch size and the values of tensors; autocast, and
        the default type."""
        # in the dictionary, since the dataclass is frozen
        known: Hashable = self.__dict__.get("_key")
        if known is None:
            known = self.__dict__["_key"] = self._make_key()
        return known

    def _make_key(self) -> Hashable:
        device = self.images.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        leaves = tuple([_key_of(x, self.batch) for x in self.leaves])
        return leaves, str(self.spec), self.places, self.frames_first, autocast, torch.get_default_dtype()


def is_image(x: Tensor) -> bool:
    """Whether a tensor has the axes of images or video."""
    return x.dim() in (4, 5)


def check_floating(images: Tensor) -> None:
    """Raise InputError for images of an integer type."""
    if not images.is_floating_point():
        raise InputError(f"images have dtype {images.dtype}, expected a floating type: use images.float() / 255")


def _place_of_images(tensors: list[Tensor]) -> int:
    images = [i for i, x in enumerate(tensors) if is_image(x)]
    if not images:
        given = ", ".join(str(tuple(x.shape)) for x in tensors) or "no tensor"
        raise InputError(
            f"no images among the arguments: expected a tensor (batch, channels, height, width) or, for video, (batch, "
            f"channels, frames, height, width), got {given}"
        )
    if len(images) == 1:
        check_floating(tensors[images[0]])
    return images[0]


def _key_of(x: Any, batch: int) -> Hashable:
    """Type, device, layout and shape of a tensor (without a first axis as long as the batch); arrays and objects that
    hold plain data by content, and all others by identity."""
    if isinstance(x, np.ndarray) and x.dtype != object:
        return x.shape, x.dtype, x.tobytes()
    if not isinstance(x, Tensor):
        described: Hashable = describe(x)
        return (type(x), id(x)) if described is IGNORED else described
    # a first axis of this length is taken for the batch, and may have another length in the next call
    batched = x.dim() > 0 and x.shape[0] == batch
    return batched, tuple(x.shape[1:] if batched else x.shape), x.dtype, x.device, is_channels_last(x)


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor (batch, channels, height, width) has the channels-last memory format."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
