"""Nine of the fifteen corruptions of ImageNet-C, for pictures of about 32×32 pixels.

The severities are those of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019, make_cifar_c.py). The random numbers are
others. The remaining six, which need textures, ImageMagick or random displacements, are left out.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["CORRUPTIONS", "corrupt"]


def _gaussian_noise(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return x + scale * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator=generator) / photons


def _impulse_noise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper: half of the share each, of the values of all channels."""
    drawn = torch.rand(x.shape, generator=generator)
    return torch.where(drawn < share / 2, 1.0, torch.where(drawn < share, 0.0, x))


def _defocus_blur(x: Tensor, disk: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Convolution with a disk of a radius, smoothed by a Gaussian of a deviation over 3×3 pixels."""
    radius, deviation = disk
    steps = torch.arange(-3.0, 4.0)
    inside = (steps[:, None] ** 2 + steps**2 <= radius**2).float()
    gauss = torch.exp(-(torch.arange(-1.0, 2.0) ** 2) / (2 * deviation**2))
    smooth = F.conv2d(
        (inside / inside.sum())[None, None], torch.outer(gauss, gauss)[None, None] / gauss.sum() ** 2, padding=1
    )
    kernel = smooth.expand(x.shape[1], -1, -1, -1)
    return F.conv2d(F.pad(x, [3] * 4, mode="reflect"), kernel, groups=x.shape[1])


def _zoom_blur(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The mean of the picture and its enlargements by 0, 1, 2, … percent."""
    zoomed = [_zoom(x, 1 + percent / 100) for percent in range(count)]
    return torch.stack([x, *zoomed]).mean(0)


def _zoom(x: Tensor, factor: float) -> Tensor:
    centre = torch.tensor([[1 / factor, 0.0, 0.0], [0.0, 1 / factor, 0.0]]).expand(len(x), -1, -1)
    grid = F.affine_grid(centre, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _brightness(x: Tensor, more: float, generator: torch.Generator) -> Tensor:
    """A larger value of hue, saturation and value."""
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1.0)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-6), brighter)


def _contrast(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + share * (x - mean)


def _pixelate(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    def coarse(image: Image.Image) -> Image.Image:
        small = (int(image.width * share), int(image.height * share))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _by_pillow(x, coarse)


def _jpeg_compression(x: Tensor, quality: int, generator: torch.Generator) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        raw = io.BytesIO()
        image.save(raw, "JPEG", quality=quality)
        return Image.open(raw)

    return _by_pillow(x, compressed)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    images = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.array(change(Image.fromarray(image))) for image in images])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, Any, torch.Generator], Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500.0, 250.0, 100.0, 75.0, 50.0)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "zoom_blur": (_zoom_blur, (6, 11, 16, 21, 26)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40)),
}
"""What each does, and its setting at severities 1 to 5."""


def corrupt(pictures: Tensor, name: str, severity: int) -> Tensor:
    """Pictures uint8 (B, 3, H, W) under one of CORRUPTIONS with a severity of 1 to 5, always the same.

    >>> corrupt(torch.full((1, 3, 28, 28), 100, dtype=torch.uint8), "contrast", 5).unique()
    tensor([100], dtype=torch.uint8)
    """
    change, settings = CORRUPTIONS[name]
    generator = torch.Generator().manual_seed(severity)
    changed = change(pictures.float() / 255, settings[severity - 1], generator)
    return (changed.clamp(0.0, 1.0) * 255).round().byte()
