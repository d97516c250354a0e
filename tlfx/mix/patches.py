"""Mixers that replace whole patches: at random, or in blocks like BEiT's masks."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.draws import on_device
from tlfx.mix.masked import MaskMixer, check_alpha
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BlockMix", "RandomPatchMix"]


TRIES = 10
"""Number of rectangles to try for one block, as in BEiT's code."""


class _PatchMixer(MaskMixer):
    """A mixer that replaces round((1 − λ)·patches) patches of the grid, λ ~ Beta(α, α)."""

    def __init__(self, *, patch_size: int = 16, alpha: float = 1.0, **arguments: Unpack[MixerArguments]) -> None:
        check_alpha(alpha)
        if patch_size < 1:
            raise InputError(f"patch_size is {patch_size}, expected the model's patch size in pixels, such as 16")
        super().__init__(**arguments)
        self.patch_size = patch_size
        self.alpha = alpha

    def masks(self, others: Tensor) -> Tensor:
        """Masks that are constant in each patch. InputError if the patch size does not divide the image size."""
        (count, _, height, width), size = others.shape, self.patch_size
        if height % size or width % size:
            raise InputError(
                f"images of {height}×{width} do not divide into patches of {size}×{size}; resize them, or pass the "
                "model's patch_size"
            )
        rows, columns = height // size, width // size
        replaced = ((1.0 - self.draws.shares(self.alpha, count)[:, 0]) * (rows * columns)).round().long()
        kept = on_device(self._kept(replaced, rows, columns).float(), others.device)
        return kept.unsqueeze(1).repeat_interleave(size, -2).repeat_interleave(size, -1)

    @abstractmethod
    def _kept(self, replaced: Tensor, rows: int, columns: int) -> Tensor:
        """Which patches stay, bool (count, rows, columns); `replaced`, int64 (count,), is the number that does not."""


class RandomPatchMix(_PatchMixer):
    """Replaces random patches by those of another image (TL-Align, Table 7).

    patch_size: in pixels; it must divide height and width of the images. A multiple of the model's patches gives
        MixPro's MaskMix (arXiv 2304.12043).
    alpha: α of λ ~ Beta(α, α), the fraction of patches that stay.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError for invalid arguments.

    >>> mix = RandomPatchMix(patch_size=2, num_classes=2, generator=torch.Generator().manual_seed(1))
    >>> images, target = mix(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 6), torch.tensor([0, 1]))
    >>> images[0, 0]
    tensor([[0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 1., 1.],
            [0., 0., 0., 0., 1., 1.]])
    """

    def _kept(self, replaced: Tensor, rows: int, columns: int) -> Tensor:
        # the place of each patch in a random order
        rank = self.draws.uniform(len(replaced), rows * columns).argsort(1).argsort(1)
        kept: Tensor = rank >= replaced[:, None]
        return kept.reshape(-1, rows, columns)


class BlockMix(_PatchMixer):
    """Replaces blocks of patches by those of another image, drawn like BEiT's masks (arXiv 2106.08254, Alg. 1).

    Rectangles of random area, aspect ratio and position are joined until the drawn number of patches is replaced, or no
    further rectangle fits; the mask holds the patches that were replaced.

    patch_size: in pixels; it must divide height and width of the images.
    alpha: α of λ ~ Beta(α, α), the fraction of patches that stay.
    min_block: smallest area of a block, in patches. min_aspect: smallest ratio of its sides.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError for invalid arguments.

    >>> mix = BlockMix(patch_size=1, num_classes=2, min_block=2, generator=torch.Generator().manual_seed(0))
    >>> images, target = mix(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 6), torch.tensor([0, 1]))
    >>> images[0, 0]
    tensor([[0., 0., 0., 0., 1., 0.],
            [1., 1., 1., 0., 1., 0.],
            [1., 1., 1., 0., 1., 1.],
            [0., 0., 0., 0., 1., 1.]])
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        alpha: float = 1.0,
        min_block: int = 16,
        min_aspect: float = 0.3,
        **arguments: Unpack[MixerArguments],
    ) -> None:
        if min_block < 1:
            raise InputError(f"min_block is {min_block}, expected a number of patches, at least 1")
        if not 0.0 < min_aspect <= 1.0:
            raise InputError(f"min_aspect is {min_aspect}, expected a ratio of sides in (0, 1], such as 0.3")
        super().__init__(patch_size=patch_size, alpha=alpha, **arguments)
        self.min_block = min_block
        self.min_aspect = min_aspect

    def _kept(self, replaced: Tensor, rows: int, columns: int) -> Tensor:
        """Draw on the host, since each block depends on the previous ones."""
        return torch.stack([torch.from_numpy(~self._blocks(wanted, rows, columns)) for wanted in replaced.tolist()])

    def _blocks(self, wanted: int, rows: int, columns: int) -> NDArray[np.bool_]:
        """Blocks that cover at most `wanted` patches, bool (rows, columns)."""
        blocks = np.zeros((rows, columns), dtype=bool)
        left = wanted
        while left:
            tries = (self._block(numbers, left, rows, columns) for numbers in self.draws.uniform(TRIES, 4).tolist())
            block = next((b for b in tries if b is not None and 0 < np.count_nonzero(~blocks[b]) <= left), None)
            if block is None:
                break
            left -= np.count_nonzero(~blocks[block])
            blocks[block] = True
        return blocks

    def _block(self, numbers: list[float], most: int, rows: int, columns: int) -> tuple[slice, slice] | None:
        """A rectangle of about `most` patches or fewer from four numbers in [0, 1); None if it exceeds the grid."""
        least = min(self.min_block, most)
        area = least + numbers[0] * (most - least)
        aspect = self.min_aspect ** (1.0 - 2.0 * numbers[1])  # log-uniform between min_aspect and its inverse
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= rows and 0 < width <= columns):
            return None
        top, left = int(numbers[2] * (rows - height + 1)), int(numbers[3] * (columns - width + 1))
        return slice(top, top + height), slice(left, left + width)
