"""Mixers that replace whole patches: at random, or in blocks as BEiT masks them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.masked import MaskMixer, check_alpha
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["BlockMix", "RandomPatchMix"]


TRIES = 10
"""Rectangles drawn for one block before it is given up, as in BEiT's code."""


class _PatchMixer(MaskMixer):
    """A mask on the grid of patches, of which round((1 − λ)·patches) are replaced, λ ~ Beta(α, α)."""

    def __init__(self, *, patch_size: int = 16, alpha: float = 1.0, **arguments: Unpack[MixerArguments]) -> None:
        check_alpha(alpha)
        if patch_size < 1:
            raise InputError(f"patch_size is {patch_size}, expected the model's, in pixels, such as 16")
        super().__init__(**arguments)
        self.patch_size = patch_size
        self.alpha = alpha

    def masks(self, others: Tensor) -> Tensor:
        """Masks that are constant in each patch. InputError if the image is not made of whole patches."""
        (count, _, height, width), size = others.shape, self.patch_size
        if height % size or width % size:
            raise InputError(
                f"images of {height}×{width} do not divide into patches of {size}×{size}; resize them, or pass the "
                "model's patch_size"
            )
        rows, columns = height // size, width // size
        replaced = ((1.0 - self.draws.shares(self.alpha, count)[:, 0]) * (rows * columns)).round().long()
        kept = self._kept(replaced, rows, columns).float().to(others.device)
        return kept.unsqueeze(1).repeat_interleave(size, -2).repeat_interleave(size, -1)

    @abstractmethod
    def _kept(self, replaced: Tensor, rows: int, columns: int) -> Tensor:
        """Which patches stay, bool (count, rows, columns): all but `replaced`, int64 (count,), of them."""


class RandomPatchMix(_PatchMixer):
    """Patches at random are replaced by those of another image (TL-Align, Table 7).

    patch_size: in pixels; images are made of whole patches. alpha: of λ ~ Beta(α, α), the share of patches that stay.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError on arguments that no mixing can follow.

    >>> mix = RandomPatchMix(patch_size=2, num_classes=2, generator=torch.Generator().manual_seed(1))
    >>> images, target = mix(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 6), torch.tensor([0, 1]))
    >>> images[0, 0]
    tensor([[0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 1., 1.],
            [0., 0., 0., 0., 1., 1.]])
    """

    def _kept(self, replaced: Tensor, rows: int, columns: int) -> Tensor:
        rank = self.draws.uniform(len(replaced), rows * columns).argsort(1).argsort(1)
        kept: Tensor = rank >= replaced[:, None]
        return kept.reshape(-1, rows, columns)


class BlockMix(_PatchMixer):
    """Blocks of patches are replaced by those of another image, drawn as BEiT masks them (arXiv 2106.08254, Alg. 1).

    Rectangles of random area, aspect ratio and place are joined until the wanted number of patches is replaced, or no
    further rectangle fits; the mask tells how many are.

    patch_size: in pixels; images are made of whole patches. alpha: of λ ~ Beta(α, α), the share of patches that stay.
    min_block: least area of a block, in patches. min_aspect: least ratio of its sides.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError on arguments that no mixing can follow.

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
        """Drawn on the host, since each block depends on those before it."""
        return torch.stack([torch.from_numpy(~self._blocks(wanted, rows, columns)) for wanted in replaced.tolist()])

    def _blocks(self, wanted: int, rows: int, columns: int) -> NDArray[np.bool_]:
        """At most `wanted` patches in blocks, bool (rows, columns)."""
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
        """A rectangle of about `most` patches or fewer, by four numbers in [0, 1); None if it exceeds the grid."""
        least = min(self.min_block, most)
        area = least + numbers[0] * (most - least)
        aspect = self.min_aspect ** (1.0 - 2.0 * numbers[1])  # log-uniform between min_aspect and its inverse
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= rows and 0 < width <= columns):
            return None
        top, left = int(numbers[2] * (rows - height + 1)), int(numbers[3] * (columns - width + 1))
        return slice(top, top + height), slice(left, left + width)
