"""The base class of mixers that draw a mask and paste by it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.draws import on_device
from tlfx.mix.mixer import Mixer

__all__ = ["MaskMixer", "check_alpha"]


class MaskMixer(Mixer):
    """Base class of mixers that paste parts of one image on another; a subclass implements `masks`.

    Random numbers are drawn on the device of the generator, masks are built on the device of the images. Arguments: see
    `Mixer`.

    >>> class LeftHalf(MaskMixer):
    ...     def masks(self, others):
    ...         count, _, height, width = others.shape
    ...         return (torch.arange(width) < width // 2).float().to(others.device).expand(count, 1, height, width)
    >>> images, target = LeftHalf(num_classes=3)(torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1, 1).expand(3, 1, 1, 4),
    ...                                          torch.tensor([0, 1, 2]))
    >>> images.squeeze()
    tensor([[1., 1., 9., 9.],
            [5., 5., 1., 1.],
            [9., 9., 5., 5.]])
    >>> target.area()
    tensor([[0.5000, 0.0000, 0.5000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000]])
    """

    @abstractmethod
    def masks(self, others: Tensor) -> Tensor:
        """Masks on the device of the images, float32 (count, 1, H or 1, W or 1): 1 where the first image stays, else 0.

        others: the images that are pasted, (count, C, H, W), one for each mask. If K > 2 images are mixed, masks are
        (count, K, …): channel k is 1 in the pixels of image k.
        """

    def blend(self, images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
        """Images where the mask is 1, others where it is 0; selected, not multiplied, so that ∞ and −0 survive."""
        return torch.where(mask.bool(), images, others)

    def _mix(self, images: Tensor, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        batch, height, width = len(images), images.shape[-2], images.shape[-1]
        if not self.mixup_enabled:
            mask = torch.ones(batch, 1 if len(sources) == 2 else len(sources), height, width, device=images.device)
            return images.clone(), self._unmixed(mask)
        # one pasted image for each mask that is drawn
        others = images[sources[1, : self._draws_for(batch)]]
        mixes = self.draws.uniform(len(others), 1, 1, 1) < self.mix_prob
        mask = self.masks(others)
        mask = torch.where(on_device(mixes, images.device), mask, self._unmixed(mask))
        if self.mode == "pair":
            # images i and B − 1 − i have one mask
            mask = torch.cat((mask, mask.flip(0)))
        mixed = images
        for k, partners in enumerate(sources[1:], 1):
            # for K images, channel k is 1 in the pixels of image k
            stays = mask if len(sources) == 2 else 1.0 - mask[:, k : k + 1]
            mixed = self.blend(mixed, images[partners], stays)
        return mixed, mask.expand(batch, -1, height, width)

    def _unmixed(self, mask: Tensor) -> Tensor:
        """The mask of unmixed images, with the shape of the given mask."""
        unmixed = torch.zeros_like(mask)
        unmixed[:, 0] = 1.0
        return unmixed


def check_alpha(alpha: float) -> None:
    """InputError unless α is a valid parameter of a Beta distribution."""
    if not 0.0 < alpha < float("inf"):
        raise InputError(f"alpha is {alpha}, expected a number above 0 for λ ~ Beta(α, α); 1.0 is uniform")
