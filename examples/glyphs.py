"""Other data sets in the form of the digits: handwritten digits of other writers, and printed characters.

The handwritten ones are the UCI digits that scikit-learn ships, the printed ones are drawn in the fonts that Matplotlib
ships. Both are about as large as the digits of `data.py`, and shown on the same photos.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import Digits, load_photos
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets  # type: ignore[import-untyped]
from torch import Tensor
from training import SIZE

__all__ = ["FONTS", "printed", "uci_digits"]

SIDE = 16
FONTS = (
    *(
        f"DejaVu{family}{style}"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
FINE = 4  # characters are drawn at 4 times their size


def uci_digits(train: int, test: int) -> tuple[Digits, Digits]:
    """At most `train` and `test` different ones of the 1797 UCI digits, a third of which are for testing."""
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.pad(F.interpolate(images, size=(12, 12), mode="bilinear"), [2] * 4)  # (N, 1, SIDE, SIDE)
    labels = torch.from_numpy(digits.target).long()
    order = _drawn(len(labels))
    cut = len(labels) // 3
    return _on_photos(images, labels, order[cut:][:train]), _on_photos(images, labels, order[:cut][:test])


def printed(characters: str, train: int, test: int) -> tuple[Digits, Digits]:
    """At most `train` and `test` characters, in different fonts, a third of which are for testing.

    A class is a character, numbered by its place in `characters`.
    """
    drawn = torch.stack([torch.stack([_draw(c, font) for c in characters]) for font in FONTS])  # (fonts, N, 1, h, w)
    labels = torch.arange(len(characters)).expand(len(FONTS), -1)
    order, cut = _drawn(len(FONTS)), len(FONTS) // 3

    def part(fonts: Tensor, count: int) -> Digits:
        images, classes = drawn[fonts].flatten(0, 1), labels[fonts].flatten()
        return _on_photos(images, classes, _drawn(len(classes))[:count])

    return part(order[cut:], train), part(order[:cut], test)


def _drawn(count: int) -> Tensor:
    """An order, always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _on_photos(images: Tensor, labels: Tensor, rows: Tensor) -> Digits:
    return Digits(images[rows], labels[rows], load_photos(), SIZE)


def _draw(character: str, font: str) -> Tensor:
    """A character (1, SIDE, SIDE) in [0, 1]."""
    file = Path(get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    fine = SIDE * FINE
    image = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(image)
    draw.text((fine / 2, fine / 2), character, font=ImageFont.truetype(str(file), 7 * fine // 8), fill=255, anchor="mm")
    pixels = torch.from_numpy(np.array(image)).float()[None] / 255
    return F.avg_pool2d(pixels, FINE)
