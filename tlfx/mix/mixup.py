"""timm's Mixup: MixUp and CutMix of a batch with its reversed copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tlfx.errors import InputError
from tlfx.mix.mixer import Mixer

__all__ = ["Mixup"]

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Blend:
    """One drawn mixture: a weighted sum (MixUp), or a box of the second image pasted on the first (CutMix)."""

    lam: Any  # float or np.float32: timm computes with either precision
    box: Box | None = None  # top, bottom, left, right

    def mix_(self, image: Tensor, other: Tensor) -> None:
        """image ← λ·image + (1 − λ)·other, or other inside the box; (…, C, H, W), in place; uint8 is rounded."""
        if self.box is not None:
            top, bottom, left, right = self.box
            image[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        elif self.lam != 1.0 and image.is_floating_point():
            image.mul_(float(self.lam)).add_(other * float(1 - self.lam))
        elif self.lam != 1.0:
            image.copy_((image.float() * float(self.lam)).add_(other.float() * float(1 - self.lam)).round_())

    def mask_(self, mask: Tensor) -> None:
        """Fill `mask` (…, H, W) with the share of the first image per pixel, in place."""
        if self.box is None:
            mask.fill_(float(self.lam))
        else:
            top, bottom, left, right = self.box
            mask.fill_(1.0)[..., top:bottom, left:right] = 0.0


class Mixup(Mixer):
    """`timm.data.Mixup` with a `MixedTarget`, which holds the share of each image per pixel.

    Arguments, defaults and numpy draws are those of timm: image i is mixed with image B − 1 − i, and for the same numpy
    seed the images equal timm's bit for bit. There are two differences. The target is a `MixedTarget`, whose `area()`
    is timm's soft target (with `correct_lam=True`). The given images stay unchanged, while timm writes into them.
    Images of uint8, which timm mixes only in its collate function, are rounded as there.

    mixup_alpha, cutmix_alpha: λ ~ Beta(α, α) for each kind of mixing with α > 0.
    cutmix_minmax: sides of the box as fractions of the image, instead of `cutmix_alpha`.
    prob: probability that a batch (or pair, or image) is mixed.
    switch_prob: probability of CutMix if both kinds are active.
    mode: one draw per "batch", per "pair" (i, B − 1 − i) or per "elem".
    correct_lam: whether timm's λ is the visible area of the box instead of the drawn area. The mask always holds the
        visible area, so this changes only timm's target.
    label_smoothing, num_classes: label smoothing and number of classes of the target.
    multi_label: labels are dense targets (B, num_classes), smoothed towards 0.5.
    pairing: "roll" (with image i − 1) and "shuffle" (with a random other image, drawn from torch) also mix odd batches;
        see `Mixer`.

    Set `mixup_enabled` to switch mixing on or off between batches. InputError for invalid arguments.

    >>> np.random.seed(0)
    >>> mix = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=3)
    >>> images, target = mix(torch.zeros(2, 3, 8, 8), torch.tensor([0, 2]))
    >>> target.area()
    tensor([[0.6094, 0.0000, 0.3906],
            [0.3906, 0.0000, 0.6094]])
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: Literal["batch", "pair", "elem"] = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        pairing: Literal["mirror", "roll", "shuffle"] = "mirror",
    ) -> None:
        super().__init__(
            num_classes=num_classes, label_smoothing=label_smoothing, mode=mode, prob=prob, pairing=pairing
        )
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha if cutmix_minmax is None else 1.0  # any α > 0 marks CutMix as active
        self.cutmix_minmax = cutmix_minmax
        self.switch_prob = switch_prob
        self.correct_lam = correct_lam
        self.multi_label = multi_label
        self._check_arguments()

    def _mix(self, images: Tensor, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Mix with timm's arithmetic: λ as a Python or numpy number, in place on a copy, image by image."""
        batch, height, width = len(images), images.shape[-2], images.shape[-1]
        mixed, others = images.clone(), images[sources[1]]
        mask = torch.empty(batch, 1, height, width, dtype=torch.float32, device=images.device)
        blends = self._blends(self._draws_for(batch), height, width)
        if self.mode == "batch":
            blends[0].mix_(mixed, others)
            blends[0].mask_(mask)
            return mixed, mask
        if self.mode == "pair":
            # image B − 1 − i has the blend of image i
            blends += blends[::-1]
        for i, blend in enumerate(blends):
            blend.mix_(mixed[i], others[i])
            blend.mask_(mask[i])
        return mixed, mask

    def _blends(self, count: int, height: int, width: int) -> list[Blend]:
        """Draw as timm does, which has one procedure for a whole batch and another one for single images."""
        if self.mode == "batch":
            return [self._blend(*self._draw_batch(), height, width)]
        return [self._blend(lam, cut, height, width) for lam, cut in zip(*self._draw_each(count), strict=True)]

    def _draw_batch(self) -> tuple[float, bool]:
        """λ, and whether to use CutMix, for the whole batch."""
        if not self.mixup_enabled or np.random.rand() >= self.mix_prob:
            return 1.0, False
        cut = self.cutmix_alpha > 0.0
        if cut and self.mixup_alpha > 0.0:
            cut = bool(np.random.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), cut

    def _draw_each(self, count: int) -> tuple[Any, Any]:
        """λ, float32 (count,), and whether to use CutMix, bool (count,)."""
        unmixed, cut = np.ones(count, dtype=np.float32), np.full(count, self.cutmix_alpha > 0.0)
        if not self.mixup_enabled:
            return unmixed, cut
        if self.mixup_alpha > 0.0 and self.cutmix_alpha > 0.0:
            cut = np.random.rand(count) < self.switch_prob
            # timm draws both for every image, CutMix first
            cutmix = np.random.beta(self.cutmix_alpha, self.cutmix_alpha, size=count)
            lam = np.where(cut, cutmix, np.random.beta(self.mixup_alpha, self.mixup_alpha, size=count))
        else:
            alpha = max(self.cutmix_alpha, self.mixup_alpha)
            lam = np.random.beta(alpha, alpha, size=count)
        return np.where(np.random.rand(count) < self.mix_prob, lam.astype(np.float32), unmixed), cut

    def _blend(self, lam: Any, cut: bool, height: int, width: int) -> Blend:
        """The blend of a drawn λ; a box is drawn only if λ < 1."""
        return self._cut(lam, height, width) if cut and lam != 1.0 else Blend(lam)

    def _cut(self, lam: Any, height: int, width: int) -> Blend:
        """A blend with a newly drawn box."""
        if self.cutmix_minmax is None:
            return Blend(lam, _box_of_area(lam, height, width))
        return Blend(lam, _box_of_sides(self.cutmix_minmax, height, width))

    def _checked(self, labels: Any, images: Tensor) -> Tensor:
        dense = self.multi_label and isinstance(labels, Tensor) and labels.dim() == 2
        return super()._checked(labels.float() if dense else labels, images)

    def _smoothed(self, labels: Tensor) -> tuple[Tensor, float]:
        smoothing = self.label_smoothing
        return (
            (labels.float() * (1.0 - smoothing) + 0.5 * smoothing, 0.0)
            if self.multi_label
            else super()._smoothed(labels)
        )

    def _check_arguments(self) -> None:
        """InputError for invalid values of α or box sides."""
        if min(self.mixup_alpha, self.cutmix_alpha) < 0.0 or max(self.mixup_alpha, self.cutmix_alpha) == 0.0:
            raise InputError(
                f"mixup_alpha is {self.mixup_alpha} and cutmix_alpha is {self.cutmix_alpha}, expected none below 0 and "
                "at least one above 0, or cutmix_minmax"
            )
        sides = self.cutmix_minmax
        if sides is not None and not (len(sides) == 2 and 0.0 <= sides[0] < sides[1] <= 1.0):
            raise InputError(
                f"cutmix_minmax is {sides!r}, expected (min, max) with 0 ≤ min < max ≤ 1, such as (0.2, 0.8)"
            )


def _box_of_area(lam: Any, height: int, width: int) -> Box:
    """Box around a random centre with 1 − λ of the image's area before it is clipped at the border (CutMix, eq. 1)."""
    ratio = np.sqrt(1 - lam)
    rows, columns = int(height * ratio), int(width * ratio)
    y, x = np.random.randint(height), np.random.randint(width)
    top, bottom = max(y - rows // 2, 0), min(y + (rows + 1) // 2, height)
    return top, bottom, max(x - columns // 2, 0), min(x + (columns + 1) // 2, width)


def _box_of_sides(minmax: Sequence[float], height: int, width: int) -> Box:
    """Box inside the image with sides that are random fractions within `minmax`. InputError if no pixel fits."""
    sides = [[int(length * fraction) for fraction in minmax] for length in (height, width)]
    if any(low >= high for low, high in sides):
        raise InputError(
            f"cutmix_minmax={tuple(minmax)} leaves no integer number of pixels for images of {height}×{width}; widen it"
        )
    rows, columns = (np.random.randint(low, high) for low, high in sides)
    top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
    return top, top + rows, left, left + columns
