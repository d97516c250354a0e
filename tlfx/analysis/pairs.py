"""Pairs of photos and their mixtures, reproducible by a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tlfx.analysis.photos import SHIPPED, fitted, shipped_photo
from tlfx.errors import InputError
from tlfx.mix import BlockMix, MixedTarget, Mixer, Mixup, RandomPatchMix

__all__ = ["MIXERS", "Pairs", "check_mixer", "mixed", "photo_pairs"]

PATCHWISE: dict[str, Callable[..., Mixer]] = {"blocks": BlockMix, "patches": RandomPatchMix}
"""Mixers that replace whole patches."""
MIXERS = ("cutmix", "mixup", *PATCHWISE)
SMALLEST = 0.4
"""Smallest side of a random crop, as a fraction of the shorter side of the photo."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and their mixtures, float32 (pairs, 3, height, width) in [0, 1], and their masks.

    The mask, float32 (pairs, 1, height, width), is the share of the first image in each pixel.
    """

    first: Tensor
    second: Tensor
    mixed: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, place: int) -> Pairs:
        """One pair, with a batch axis of size 1."""
        return Pairs(*(x[place : place + 1] for x in (self.first, self.second, self.mixed, self.mask)))

    @property
    def area(self) -> Tensor:
        """The plain CutMix target: share of the first image by area, (pairs,)."""
        return self.mask.mean((1, 2, 3))


def mixed(first: Tensor, second: Tensor, mixer: str = "cutmix", seed: int = 0, patch: int = 16) -> Pairs:
    """Mix two images (3, height, width) by one of :data:`MIXERS`.

    ``patch`` is the side in pixels of the patches that patch-wise mixers replace. Raises InputError if the mixer is
    unknown or cannot mix images of this size.

    >>> pair = mixed(torch.zeros(3, 8, 8), torch.ones(3, 8, 8), seed=1)
    >>> torch.equal(1 - pair.mixed[:, :1], pair.mask)
    True
    """
    run, both = _mixer(mixer, patch), torch.stack((first, second))
    with _seeded(seed):
        images, target = run(both, torch.tensor([0, 1]))
    mask = target.mask.expand(2, 1, *first.shape[1:])
    return Pairs(first[None], second[None], images[:1], mask[:1].float())


def photo_pairs(count: int, size: Sequence[int], seed: int = 0) -> Pairs:
    """CutMix of ``count`` pairs of random crops of different photos from scikit-image, at (height, width).

    >>> len(photo_pairs(3, (16, 16)))
    3
    """
    photos = [shipped_photo(name) for name in SHIPPED]
    draw = torch.Generator().manual_seed(seed)
    pairs = []
    for place in range(count):
        chosen = torch.randperm(len(photos), generator=draw)[:2].tolist()
        one, other = (_crop(photos[i], size, draw) for i in chosen)
        pairs.append(mixed(one, other, seed=seed + place))
    return Pairs(*(torch.cat([getattr(p, name) for p in pairs]) for name in ("first", "second", "mixed", "mask")))


def check_mixer(name: str) -> None:
    """Raise InputError for an unknown mixer."""
    if name not in MIXERS:
        raise InputError(f"mixer {name!r} is unknown, expected one of {', '.join(MIXERS)}")


def _crop(photo: Tensor, size: Sequence[int], draw: torch.Generator) -> Tensor:
    """A random square of a photo, scaled to ``size``."""
    shorter = min(photo.shape[1:])
    scale, y, x = torch.rand(3, generator=draw).tolist()
    side = round((SMALLEST + (1 - SMALLEST) * scale) * shorter)
    top, left = round(y * (photo.shape[1] - side)), round(x * (photo.shape[2] - side))
    return fitted(photo[:, top : top + side, left : left + side], size)


def _mixer(name: str, patch: int) -> Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]:
    check_mixer(name)
    if name not in PATCHWISE:
        alpha, other = float(name == "mixup"), float(name == "cutmix")
        return Mixup(mixup_alpha=alpha, cutmix_alpha=other, label_smoothing=0.0, num_classes=2)
    return PATCHWISE[name](patch_size=patch, num_classes=2)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of numpy and torch, which mixers draw from, and restore them on exit."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(state)
