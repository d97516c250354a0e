"""Photos as images for a model, from scikit-image or from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlfx.errors import InputError

__all__ = ["SHIPPED", "fitted", "normalised", "open_photo", "shipped_photo"]

SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")
"""Colour photos in the scikit-image package, all free to use; none is downloaded."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Those of ImageNet, for models without configured values."""


def shipped_photo(name: str) -> Tensor:
    """One of :data:`SHIPPED`: float32 (3, height, width) in [0, 1]. Raises InputError without scikit-image.

    >>> shipped_photo("chelsea").shape
    torch.Size([3, 300, 451])
    """
    try:
        from skimage import data
    except ImportError as error:
        raise InputError(
            f"the photo {name} needs scikit-image (pip install 'tlfx[plot]'), or pass image files"
        ) from error
    return torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1).float() / 255


def open_photo(path: str | Path) -> Tensor:
    """An image file as float32 (3, height, width) in [0, 1]. Raises InputError if it cannot be read."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise InputError(f"there is no image file {str(path)!r}")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read as an image ({error}); expected a PNG, JPEG or similar file"
        ) from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def fitted(photo: Tensor, size: Sequence[int]) -> Tensor:
    """The central crop of a photo (3, h, w), scaled to ``size`` (height, width): (3, height, width).

    >>> fitted(torch.rand(3, 30, 40), (16, 24)).shape
    torch.Size([3, 16, 24])
    """
    height, width = size
    scale = max(height / photo.shape[1], width / photo.shape[2])
    full = (max(height, round(photo.shape[1] * scale)), max(width, round(photo.shape[2] * scale)))
    scaled = F.interpolate(photo[None], full, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (full[0] - height) // 2, (full[1] - width) // 2
    return scaled[:, top : top + height, left : left + width].clamp(0, 1)


def normalised(images: Tensor, model: nn.Module) -> Tensor:
    """Images (…, 3, height, width) in [0, 1], normalised with mean and deviation of the model, or of ImageNet."""
    config = getattr(model, "default_cfg", None)
    config = config if isinstance(config, dict) else {}
    mean, std = (torch.tensor(config.get(k) or default).view(3, 1, 1) for k, default in (("mean", MEAN), ("std", STD)))
    return (images - mean) / std
