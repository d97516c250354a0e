"""A mixer of two or more images on a grid of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.draws import on_device
from tlfx.mix.masked import MaskMixer, check_alpha
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GridMix"]


class GridMix(MaskMixer):
    """Fills each cell of a grid from one of K images, chosen with probabilities ~ Dirichlet(α, …, α).

    images: K, at least 2. For K > 2 the target has `labels` (B, K) and a mask of K channels.
    grid: number of cells along each axis; it need not divide the image size evenly.
    alpha: α of the Dirichlet distribution; larger values give more equal shares.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError for invalid arguments.

    >>> mix = GridMix(images=3, grid=2, num_classes=3, generator=torch.Generator().manual_seed(1))
    >>> images, target = mix(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    >>> images[0, 0]
    tensor([[1., 1., 0., 0.],
            [1., 1., 0., 0.],
            [2., 2., 0., 0.],
            [2., 2., 0., 0.]])
    >>> target.labels[0], target.mask.shape, target.area()[0]
    (tensor([0, 2, 1]), torch.Size([3, 3, 4, 4]), tensor([0.5000, 0.2500, 0.2500]))
    """

    def __init__(
        self, *, images: int = 4, grid: int = 4, alpha: float = 1.0, **arguments: Unpack[MixerArguments]
    ) -> None:
        check_alpha(alpha)
        if grid < 2:
            raise InputError(f"grid is {grid}, expected a number of cells along each axis, at least 2")
        super().__init__(images=images, **arguments)
        self.grid = grid
        self.alpha = alpha

    def masks(self, others: Tensor) -> Tensor:
        """One-hot masks (count, K, height, width); for K = 2 that of the first image, (count, 1, height, width)."""
        (count, _, height, width), device = others.shape, others.device
        if min(height, width) < self.grid:
            raise InputError(
                f"images of {height}×{width} do not divide into a grid of {self.grid}×{self.grid} cells; use a smaller "
                "grid, or larger images"
            )
        shares = self.draws.shares(self.alpha, count, self.images)
        cells = on_device(self.draws.choice(shares, self.grid**2), device).view(count, self.grid, self.grid)
        # the cell of each row and of each column of pixels
        rows, columns = (torch.arange(n, device=device) * self.grid // n for n in (height, width))
        owner = F.one_hot(cells[:, rows[:, None], columns], self.images).movedim(-1, 1).float()
        return owner if self.images > 2 else owner[:, :1]
