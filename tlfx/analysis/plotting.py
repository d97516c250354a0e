"""Shared parts of plots: figures without a display, colours, and atomic writes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlfx.errors import InputError
from tlfx.system.files import check_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "ANIMATION",
    "COLORS",
    "FIRST",
    "FORMATS",
    "SECOND",
    "animate",
    "check_file",
    "figure",
    "save",
    "shares",
    "write",
]

FIRST, SECOND = "#b2182b", "#2166ac"
"""Red of the first image and blue of the second: the ends of ColorBrewer's RdBu, which readers with red-green blindness
can distinguish."""
SHARES = (SECOND, "#67a9cf", "#f7f7f7", "#ef8a62", FIRST)
"""Colours of shares of the first image 0, ¼, ½, ¾ and 1."""
COLORS = {"black": "#000000", "orange": "#E69F00", "green": "#009E73", "blue": "#0072B2", "red": "#D55E00"}
"""Colours of lines, from the colour-blind safe palette of Okabe and Ito."""
FORMATS = (".png", ".pdf", ".svg")
ANIMATION = ".gif"


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without a display. Raises InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'tlfx[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def shares() -> Colormap:
    """The colour map for shares of the first image from 0 to 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shares", SHARES)


def check_file(path: str | Path, option: str, formats: Sequence[str] = FORMATS) -> None:
    """Raise InputError if a file cannot be written or its suffix is not one of ``formats``; call it before the work."""
    file = Path(path)
    if file.suffix.lower() not in formats:
        raise InputError(f"{option} {str(path)!r}: expected a file that ends in {', '.join(formats)}")
    check_writable(file, option)


def save(drawn: Figure, path: str | Path, small: bool = False) -> None:
    """Write a figure to a file atomically; ``small`` writes a PNG with 256 colours, a third of the size."""
    kind = Path(path).suffix[1:].lower()
    content = io.BytesIO()
    drawn.savefig(content, format=kind, dpi=100)
    if small and kind == "png":
        from PIL import Image

        with Image.open(content) as image:
            palette = image.convert("RGB").quantize(256)
        content = io.BytesIO()
        palette.save(content, format="PNG", optimize=True)
    write_atomically(path, lambda file: file.write(content.getvalue()))


def animate(frames: Sequence[Figure], path: str | Path, seconds: float = 1.5) -> None:
    """Write figures of one size as an endless animation, a GIF, atomically; the first and the last stay longer."""
    from PIL import Image

    drawn = []
    for frame in frames:
        content = io.BytesIO()
        frame.savefig(content, format="png", dpi=100)
        with Image.open(content) as image:
            drawn.append(image.convert("RGB"))
    width, height = drawn[0].size
    below = Image.new("RGB", (width, height * len(drawn)))  # all frames, for the colours that they share
    for i, image in enumerate(drawn):
        below.paste(image, (0, i * height))
    palette = below.quantize(256)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in drawn]
    times = [round(1000 * seconds * (2 if i in (0, len(images) - 1) else 1)) for i in range(len(images))]
    content = io.BytesIO()
    images[0].save(
        content, format="GIF", save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True
    )
    write_atomically(path, lambda file: file.write(content.getvalue()))


def write(text: str, path: str | Path) -> None:
    """Write text to a file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))
