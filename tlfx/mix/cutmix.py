"""CutMix and MixUp with the behaviour of torchvision's transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tlfx.mix.draws import on_device
from tlfx.mix.masked import MaskMixer, check_alpha
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CutMix", "MixUp"]


class CutMix(MaskMixer):
    """CutMix (arXiv 1905.04899), as `torchvision.transforms.v2.CutMix`, with a `MixedTarget` instead of soft labels.

    A box around a random centre is replaced. It has 1 − λ of the image's area before it is clipped at the border, with
    λ ~ Beta(α, α). The other arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing,
    generator.

    InputError for invalid arguments.

    >>> cutmix = CutMix(num_classes=2, generator=torch.Generator().manual_seed(1))
    >>> images, target = cutmix(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 3, 6), torch.tensor([0, 1]))
    >>> images[0, 0]
    tensor([[1., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 0., 0.]])
    """

    def __init__(self, *, alpha: float = 1.0, **arguments: Unpack[MixerArguments]) -> None:
        check_alpha(alpha)
        super().__init__(**arguments)
        self.alpha = alpha

    def masks(self, others: Tensor) -> Tensor:
        """Boxes of 0 in masks of 1."""
        sides = (1.0 - self.draws.shares(self.alpha, len(others))[:, 0]).sqrt()
        rows, columns = (
            _span(on_device(sides, others.device), on_device(centre, others.device), length)
            for centre, length in zip(self.centres(others), others.shape[-2:], strict=True)
        )
        return 1.0 - (rows[:, None, :, None] & columns[:, None, None, :]).float()

    def centres(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the centres of the boxes, int64 (count,) each; others are the pasted images."""
        count, _, height, width = others.shape
        return self.draws.below(height, count), self.draws.below(width, count)


def _span(sides: Tensor, centres: Tensor, length: int) -> Tensor:
    """Which pixels of an axis are inside each box, bool (count, length); sides are fractions of the axis."""
    cut = (sides * length).long()[:, None]
    from_centre = torch.arange(length, device=sides.device) - centres[:, None]
    return (from_centre >= -(cut // 2)) & (from_centre < (cut + 1) // 2)


class MixUp(MaskMixer):
    """MixUp (arXiv 1710.09412), as `torchvision.transforms.v2.MixUp`: λ·image + (1 − λ)·other, λ ~ Beta(α, α).

    The target is a `MixedTarget` whose mask is λ in every pixel. Images of uint8 are rounded. The other arguments are
    those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError for invalid arguments.

    >>> mixup = MixUp(num_classes=2, generator=torch.Generator().manual_seed(0))
    >>> images, target = mixup(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8), torch.tensor([0, 1]))
    >>> images.shape, target.mask.shape, target.area()
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 1, 8, 8]), tensor([[0.4825, 0.5175],
            [0.5175, 0.4825]]))
    """

    def __init__(self, *, alpha: float = 1.0, **arguments: Unpack[MixerArguments]) -> None:
        check_alpha(alpha)
        super().__init__(**arguments)
        self.alpha = alpha

    def masks(self, others: Tensor) -> Tensor:
        """λ for all pixels of an image: (count, 1, 1, 1)."""
        return on_device(self.draws.shares(self.alpha, len(others))[:, :1, None, None], others.device)

    def blend(self, images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """The weighted sum; images with λ = 1 keep their exact values."""
        mixed = images * mask + others * (1.0 - mask)
        mixed = mixed if images.is_floating_point() else mixed.round_()
        return torch.where(mask == 1.0, images, mixed.to(images.dtype))
