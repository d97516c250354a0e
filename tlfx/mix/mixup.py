"""MixUp and CutMix of a batch with its own mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlfx.errors import InputError, TargetError
from tlfx.mix.target import MixedTarget

__all__ = ["Mixup"]

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Blend:
    """How two images become one: a weighted sum (MixUp), or a box of the second pasted on the first (CutMix)."""

    lam: Any  # float or np.float32; its precision is part of the arithmetic
    box: Box | None = None  # top, bottom, left, right

    def mix_(self, image: Tensor, other: Tensor) -> None:
        """image ← λ·image + (1 − λ)·other, or other inside the box; (…, C, H, W), in place."""
        if self.box is not None:
            top, bottom, left, right = self.box
            image[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        elif self.lam != 1.0:
            image.mul_(float(self.lam)).add_(other * float(1 - self.lam))

    def mask_(self, mask: Tensor) -> None:
        """Fill `mask` (…, H, W) with the share of the first image per pixel, in place."""
        if self.box is None:
            mask.fill_(float(self.lam))
        else:
            top, bottom, left, right = self.box
            mask.fill_(1.0)[..., top:bottom, left:right] = 0.0


class Mixup:
    """`timm.data.Mixup` that also says which pixel came from which image.

    Arguments, defaults and numpy draws are those of timm, and for the same numpy seed the images are the same bit for
    bit: image i is mixed with image B − 1 − i. Two differences. The target is a `MixedTarget`, whose `area()` is timm's
    soft target. And the caller's images are left as they are, where timm writes into them.

    mixup_alpha, cutmix_alpha: λ ~ Beta(α, α) for each kind of mixing that has α > 0.
    cutmix_minmax: sides of the box as fractions of the image, in place of `cutmix_alpha`.
    prob: probability to mix a batch (or pair, or element). switch_prob: that of CutMix where both are active.
    mode: one draw per "batch", per "pair" (i, B − 1 − i) or per "elem".
    correct_lam: whether timm's λ is the visible area of the box, not the area that was drawn. The mask always tells
        the visible area, so without correction only timm's own target differs.
    label_smoothing, num_classes: of the target.
    multi_label: dense targets (B, num_classes), each label smoothed towards 0.5.

    `mixup_enabled` switches mixing off and on between batches. InputError on arguments that no mixing can follow.

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
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
    ) -> None:
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha if cutmix_minmax is None else 1.0  # any α > 0 says that CutMix is active
        self.cutmix_minmax = cutmix_minmax
        self.mix_prob = prob
        self.switch_prob = switch_prob
        self.mode = mode
        self.correct_lam = correct_lam
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.mixup_enabled = True
        self._check_arguments()

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, MixedTarget]:
        """Mix floating images (B, C, H, W), B even, with labels (B,) or soft labels (B, num_classes).

        Returns new images of the same shape and type, and their `MixedTarget` with a float32 mask (B, 1, H, W).
        InputError for other images, TargetError for labels that do not fit them.
        """
        _check_images(x)
        images = x.clone()
        mask = torch.ones(len(x), 1, *x.shape[-2:], dtype=torch.float32, device=x.device)
        self._mix_(images, mask, x.flip(0))
        mixed = self._target(target, mask)
        mixed.check(len(x), tuple(x.shape[-2:]), values=mask.device.type == "cpu")  # reading values stalls a GPU
        return images, mixed

    def _mix_(self, images: Tensor, mask: Tensor, others: Tensor) -> None:
        """Draw the blends of this batch and apply them in place."""
        batch, height, width = len(images), images.shape[-2], images.shape[-1]
        if self.mode == "batch":
            blend = self._blend(*self._draw_batch(), height, width)
            blend.mix_(images, others)
            blend.mask_(mask)
            return
        draws = self._draw_each(batch if self.mode == "elem" else batch // 2)
        blends = [self._blend(lam, cut, height, width) for lam, cut in zip(*draws, strict=True)]
        if self.mode == "pair":
            blends += blends[::-1]
        for i, blend in enumerate(blends):
            blend.mix_(images[i], others[i])
            blend.mask_(mask[i])

    def _draw_batch(self) -> tuple[float, bool]:
        """λ and whether to cut, once."""
        if not self.mixup_enabled or np.random.rand() >= self.mix_prob:
            return 1.0, False
        cut = self.cutmix_alpha > 0.0
        if cut and self.mixup_alpha > 0.0:
            cut = bool(np.random.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), cut

    def _draw_each(self, count: int) -> tuple[Any, Any]:
        """λ, float32 (count,), and whether to cut, bool (count,)."""
        unmixed, cut = np.ones(count, dtype=np.float32), np.full(count, self.cutmix_alpha > 0.0)
        if not self.mixup_enabled:
            return unmixed, cut
        if self.mixup_alpha > 0.0 and self.cutmix_alpha > 0.0:
            cut = np.random.rand(count) < self.switch_prob
            # timm draws both for every element, CutMix first
            cutmix = np.random.beta(self.cutmix_alpha, self.cutmix_alpha, size=count)
            lam = np.where(cut, cutmix, np.random.beta(self.mixup_alpha, self.mixup_alpha, size=count))
        else:
            alpha = max(self.cutmix_alpha, self.mixup_alpha)
            lam = np.random.beta(alpha, alpha, size=count)
        return np.where(np.random.rand(count) < self.mix_prob, lam.astype(np.float32), unmixed), cut

    def _blend(self, lam: Any, cut: bool, height: int, width: int) -> Blend:
        """The blend of a drawn λ; a box is drawn only where there is something to mix."""
        if not cut or lam == 1.0:
            return Blend(lam)
        if self.cutmix_minmax is None:
            return Blend(lam, _box_of_area(lam, height, width))
        return Blend(lam, _box_of_sides(self.cutmix_minmax, height, width))

    def _target(self, target: Tensor, mask: Tensor) -> MixedTarget:
        """Labels of both images with the mask. TargetError if the labels are no tensor."""
        if not isinstance(target, Tensor):
            raise TargetError(f"labels are a {type(target).__name__}, expected a torch.Tensor (batch,)")
        smoothing = self.label_smoothing
        if self.multi_label:
            target, smoothing = target.float() * (1.0 - smoothing) + 0.5 * smoothing, 0.0
        return MixedTarget(
            first=target, second=target.flip(0), mask=mask, num_classes=self.num_classes, smoothing=smoothing
        )

    def _check_arguments(self) -> None:
        """InputError on arguments that no mixing can follow."""
        if self.mode not in ("batch", "pair", "elem"):
            raise InputError(f"mode is {self.mode!r}, expected 'batch', 'pair' or 'elem'")
        if min(self.mixup_alpha, self.cutmix_alpha) < 0.0 or max(self.mixup_alpha, self.cutmix_alpha) == 0.0:
            raise InputError(
                f"mixup_alpha is {self.mixup_alpha} and cutmix_alpha is {self.cutmix_alpha}, expected none below 0 and "
                "one above, or cutmix_minmax"
            )
        sides = self.cutmix_minmax
        if sides is not None and not (len(sides) == 2 and 0.0 <= sides[0] < sides[1] <= 1.0):
            raise InputError(f"cutmix_minmax is {sides!r}, expected (min, max) with 0 ≤ min < max ≤ 1, as (0.2, 0.8)")


def _box_of_area(lam: Any, height: int, width: int) -> Box:
    """Box around a random centre that has 1 − λ of the image's area before the border clips it (CutMix, eq. 1)."""
    ratio = np.sqrt(1 - lam)
    rows, columns = int(height * ratio), int(width * ratio)
    y, x = np.random.randint(height), np.random.randint(width)
    top, bottom = max(y - rows // 2, 0), min(y + (rows + 1) // 2, height)
    return top, bottom, max(x - columns // 2, 0), min(x + (columns + 1) // 2, width)


def _box_of_sides(minmax: Sequence[float], height: int, width: int) -> Box:
    """Box inside the image whose sides are random fractions between `minmax` of it. InputError if it holds no pixel."""
    sides = [[int(length * fraction) for fraction in minmax] for length in (height, width)]
    if any(low >= high for low, high in sides):
        raise InputError(
            f"cutmix_minmax={tuple(minmax)} leaves no whole number of pixels for images of {height}×{width}; widen it"
        )
    rows, columns = (np.random.randint(low, high) for low, high in sides)
    top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
    return top, top + rows, left, left + columns


def _check_images(x: Tensor) -> None:
    """InputError unless x is a floating tensor (B, C, H, W) with B even."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InputError(f"images are {given}, expected a torch.Tensor (batch, channels, height, width)")
    if not x.is_floating_point():
        raise InputError(f"images have dtype {x.dtype}, expected a floating type; convert and normalise them first")
    if len(x) < 2 or len(x) % 2:
        raise InputError(
            f"a batch of {len(x)} images cannot be mixed in pairs (i with B − 1 − i); use an even batch size and "
            "drop_last=True in the DataLoader"
        )
