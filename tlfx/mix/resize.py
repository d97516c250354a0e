"""A mixer that pastes a smaller copy of one image on another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.draws import on_device
from tlfx.mix.masked import MaskMixer
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ResizeMix"]


class ResizeMix(MaskMixer):
    """Resizes an image to a smaller one and pastes it at a random position of another image (arXiv 2012.11101).

    scale: (low, high), the range of the pasted size as a fraction of the image size, drawn uniformly; height and width
        have the same fraction.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError for invalid arguments.

    >>> mix = ResizeMix(scale=(0.5, 0.5), num_classes=2, generator=torch.Generator().manual_seed(0))
    >>> images, target = mix(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 6), torch.tensor([0, 1]))
    >>> images[0, 0]
    tensor([[1., 1., 1., 0., 0., 0.],
            [1., 1., 1., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0.]])
    """

    def __init__(self, *, scale: tuple[float, float] = (0.1, 0.8), **arguments: Unpack[MixerArguments]) -> None:
        if not (len(scale) == 2 and 0.0 < scale[0] <= scale[1] <= 1.0):
            raise InputError(f"scale is {scale!r}, expected (low, high) with 0 < low ≤ high ≤ 1, such as (0.1, 0.8)")
        super().__init__(**arguments)
        self.scale = scale

    def masks(self, others: Tensor) -> Tensor:
        """Masks of 1 with a box of 0, of at least one pixel, in each."""
        (count, _, height, width), (low, high) = others.shape, self.scale
        shares, places = low + (high - low) * self.draws.uniform(count), self.draws.uniform(2, count)
        rows, columns = (
            _span(on_device(shares, others.device), on_device(place, others.device), length)
            for place, length in zip(places, (height, width), strict=True)
        )
        return 1.0 - (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def blend(self, images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """Images with the others resized into the boxes of the mask (1 or B, 1, H, W)."""
        mixed = images.clone()
        for i, (top, bottom, left, right) in enumerate(_boxes(mask)):
            chosen = slice(i, i + 1) if len(mask) > 1 else slice(None)  # one box for all images is pasted at once
            if top < bottom:
                small = _resized(others[chosen], bottom - top, right - left)
                mixed[chosen, :, top:bottom, left:right] = small.to(images.dtype)
        return mixed


def _span(shares: Tensor, places: Tensor, length: int) -> Tensor:
    """Which pixels of an axis are inside each box: bool (count, length); sizes and positions are fractions."""
    side = (shares * length).long().clamp_min(1)[:, None]
    from_start = torch.arange(length, device=shares.device) - (places[:, None] * (length - side + 1)).long()
    return (from_start >= 0) & (from_start < side)


def _boxes(mask: Tensor) -> list[list[int]]:
    """Top, bottom, left and right of the box of 0 in each mask; all 0 for a mask without box."""
    inside = mask[:, 0] == 0.0
    bounds = []
    for along in (inside.any(2), inside.any(1)):
        # the first True; a box is one interval along each axis
        start = along.int().argmax(1)
        bounds += [start, start + along.sum(1)]
    boxes: list[list[int]] = torch.stack(bounds, 1).tolist()
    return boxes


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images in another size, computed in float32 or float64; rounded if their type is integer."""
    pixels = images if images.dtype in (torch.float32, torch.float64) else images.float()
    small = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return small if images.is_floating_point() else small.round_()
