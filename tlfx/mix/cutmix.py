"""CutMix and MixUp with the arguments of torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tlfx.mix.masked import MaskMixer, check_alpha
from tlfx.mix.mixer import MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CutMix", "MixUp"]


class CutMix(MaskMixer):
    """CutMix (arXiv 1905.04899), as `torchvision.transforms.v2.CutMix`, with a `MixedTarget` in place of soft labels.

    A box around a random centre that has 1 − λ of the area, λ ~ Beta(α, α), before the border clips it. The other
    arguments are those of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError on arguments that no mixing can follow.

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

    def masks(self, count: int, height: int, width: int, device: torch.device) -> Tensor:
        """Boxes of 0 in masks of 1."""
        sides = (1.0 - self.draws.shares(self.alpha, count)[:, 0]).sqrt()
        inside = [self._span(sides, length, device) for length in (height, width)]
        return 1.0 - (inside[0][:, None, :, None] & inside[1][:, None, None, :]).float()

    def _span(self, sides: Tensor, length: int, device: torch.device) -> Tensor:
        """Which pixels of one axis lie in the box, bool (count, length)."""
        cut, centre = (sides * length).long(), self.draws.below(length, len(sides))
        low, high = ((centre + edge).to(device)[:, None] for edge in (-(cut // 2), (cut + 1) // 2))
        pixels = torch.arange(length, device=device)
        return (pixels >= low) & (pixels < high)


class MixUp(MaskMixer):
    """MixUp (arXiv 1710.09412), as `torchvision.transforms.v2.MixUp`: λ·image + (1 − λ)·other, λ ~ Beta(α, α).

    The target is a `MixedTarget` whose mask is λ everywhere. Images of uint8 are rounded. The other arguments are those
    of `Mixer`: num_classes, label_smoothing, mode, prob, pairing, generator.

    InputError on arguments that no mixing can follow.

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

    def masks(self, count: int, height: int, width: int, device: torch.device) -> Tensor:
        """λ, once for all pixels: (count, 1, 1, 1)."""
        return self.draws.shares(self.alpha, count)[:, :1, None, None].to(device)

    def blend(self, images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """The weighted sum; images with λ = 1 are left as they are."""
        mixed = images * mask + others * (1.0 - mask)
        mixed = mixed if images.is_floating_point() else mixed.round_()
        return torch.where(mask == 1.0, images, mixed.to(images.dtype))
