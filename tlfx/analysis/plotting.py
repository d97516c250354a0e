"""What all plots share: matplotlib without a display, one set of colours, and files that are written whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlfx.errors import InputError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = ["COLORS", "FIRST", "SECOND", "check_file", "figure", "save", "shares", "write"]

FIRST, SECOND = "#b2182b", "#2166ac"
"""Red of the first image and blue of the second: the ends of ColorBrewer's RdBu, which stay apart (an olive and a blue)
for people who do not tell red from green."""
SHARES = (SECOND, "#67a9cf", "#f7f7f7", "#ef8a62", FIRST)
"""Colours of shares of the first image 0, ¼, ½, ¾ and 1."""
COLORS = {"black": "#000000", "orange": "#E69F00", "green": "#009E73", "blue": "#0072B2", "red": "#D55E00"}
"""Colours of lines, from Okabe and Ito's set for every kind of colour vision."""
FORMATS = (".png", ".pdf", ".svg")


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn without a display. Raises InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'tlfx[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def shares() -> Colormap:
    """The colour map of shares of the first image, from 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shares", SHARES)


def check_file(path: str | Path, option: str, formats: Sequence[str] = FORMATS) -> None:
    """Raise InputError, before any work is done, for a file that cannot be written or ends in none of ``formats``."""
    file = Path(path)
    if file.suffix.lower() not in formats:
        raise InputError(f"{option} {str(path)!r}: expected a file that ends in {', '.join(formats)}")
    if not file.parent.is_dir():
        raise InputError(f"{option} {str(path)!r}: there is no directory {str(file.parent)!r}; create it first")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written")


def save(drawn: Figure, path: str | Path, small: bool = False) -> None:
    """Write a figure to a file, whole or not at all; ``small`` writes a PNG with 256 colours, a third of the size."""
    file = Path(path)
    part, kind = _part(file), file.suffix[1:].lower()
    drawn.savefig(part, format=kind, dpi=100)
    if small and kind == "png":
        from PIL import Image

        with Image.open(part) as image:
            palette = image.convert("RGB").quantize(256)
        palette.save(part, format="PNG", optimize=True)
    part.replace(file)


def write(text: str, path: str | Path) -> None:
    """Write text to a file, whole or not at all."""
    file = Path(path)
    _part(file).write_text(text, encoding="utf-8")
    _part(file).replace(file)


def _part(file: Path) -> Path:
    """Where a file is written before it takes its place."""
    return file.with_name(f".{file.name}.part")
