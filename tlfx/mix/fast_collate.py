"""The collate function of timm's prefetching loader, with a target that keeps the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data.mixup import FastCollateMixup as CollateOfTimm
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.collate import stack
from tlfx.mix.mixup import Blend, Mixup
from tlfx.mix.target import MixedTarget

__all__ = ["FastCollateMixup"]


# Derives from timm's class too: timm's PrefetchLoader sets `mixup_enabled` only on instances of its own class.
class FastCollateMixup(Mixup, CollateOfTimm):
    """`timm.data.FastCollateMixup` whose target is a `MixedTarget`; needs timm.

    Use it as `timm.data.create_loader(..., collate_fn=FastCollateMixup(...))`. Arguments and numpy draws are those of
    timm; for the same numpy seed, the images equal timm's bit for bit. timm's mode "half" is not supported.

    >>> import numpy as np
    >>> samples = [(np.full((3, 8, 8), i, dtype=np.uint8), i) for i in range(4)]
    >>> images, target = FastCollateMixup(mixup_alpha=0.8, num_classes=4)(samples)
    >>> images.dtype, target.second
    (torch.uint8, tensor([3, 2, 1, 0]))
    """

    def __call__(self, batch: Sequence[Any], _: Any = None) -> tuple[Tensor, MixedTarget]:
        """Stack uint8 samples (image, label) and mix them. InputError for images of another type."""
        images, labels = stack(batch)
        if images.dtype != torch.uint8:
            raise InputError(
                f"images have dtype {images.dtype}, expected torch.uint8, which timm's PrefetchLoader normalises; use "
                "tlfx.mix.Collate for other types"
            )
        return super().__call__(images, labels)

    def _blend(self, lam: Any, cut: bool, height: int, width: int) -> Blend:
        """The blend of a drawn λ; for a whole batch, timm's collate function draws a box even for λ = 1."""
        if cut and self.mode == "batch":
            return self._cut(lam, height, width)
        return super()._blend(lam, cut, height, width)
