"""A collate function that mixes batches in the workers of a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from tlfx.errors import InputError, a_type
from tlfx.mix.target import MixedTarget

__all__ = ["Collate", "stack"]


class Collate:
    """A `collate_fn` that stacks samples (image, label) and mixes them: it returns images and their `MixedTarget`.

    Images are floating or uint8 tensors or numpy arrays (C, H, W), as in the data sets of timm and torchvision. Images
    of uint8 stay uint8, so that they can be normalised on the device; blended pixels are rounded.

    mixer: any mixer of `tlfx.mix`.

    InputError for samples other than pairs, images of different shapes, and images that the mixer cannot mix.

    >>> import numpy as np
    >>> from tlfx.mix import CutMix
    >>> samples = [(np.full((3, 8, 8), i, dtype=np.uint8), i) for i in range(3)]
    >>> images, target = Collate(CutMix(num_classes=3))(samples)
    >>> images.dtype, images.shape, target.second
    (torch.uint8, torch.Size([3, 3, 8, 8]), tensor([2, 0, 1]))
    """

    def __init__(self, mixer: Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]) -> None:
        self.mixer = mixer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mixer})"

    def __call__(self, samples: Sequence[Any]) -> tuple[Tensor, MixedTarget]:
        """Stack the samples and mix them."""
        return self.mixer(*stack(samples))


def stack(samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Stack samples (image, label) to a batch. InputError for samples other than pairs, or images of different shapes.

    >>> import torch
    >>> images, labels = stack([(torch.zeros(3, 8, 8), 4), (torch.ones(3, 8, 8), 2)])
    >>> images.shape, labels
    (torch.Size([2, 3, 8, 8]), tensor([4, 2]))
    """
    for sample in samples:
        if not (isinstance(sample, tuple | list) and len(sample) == 2):
            size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
            raise InputError(f"a sample is {a_type(sample)}{size}, expected a pair (image, label)")
    shapes = {tuple(getattr(image, "shape", ())) for image, _ in samples}
    if len(shapes) != 1 or len(min(shapes)) != 3:
        given = ", ".join(sorted({type(image).__name__ for image, _ in samples})) or "nothing"
        raise InputError(
            f"the images of a batch are {given} of shapes {sorted(shapes)}, expected tensors or arrays of equal shape "
            "(channels, height, width); crop, resize and convert them in the transforms"
        )
    images, labels = default_collate([tuple(sample) for sample in samples])
    return images, labels
