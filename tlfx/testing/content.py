"""Values with image content in any layout, for checks of rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tlfx.errors import InputError

__all__ = ["Content", "default_layout", "from_pixels", "to_pixels"]

LAYOUTS = {2: "bc", 3: "btc", 4: "bctt", 5: "bcttt"}


@dataclass(frozen=True)
class Content:
    """A tensor with image content and the meaning of its axes: b for batch, t for tokens, c for channels.

    >>> Content(torch.rand(2, 4, 9, 8), "bctc").tokens
    9
    """

    value: Tensor
    layout: str

    def __post_init__(self) -> None:
        fits = len(self.layout) == self.value.dim() and set(self.layout) <= set("btc") and self.layout.count("b") == 1
        if not fits:
            raise InputError(
                f"Content of shape {tuple(self.value.shape)} with layout {self.layout!r}: expected one letter per "
                "axis: b (batch) once, t (tokens) and c (channels)"
            )

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.value.shape[self.layout.index("b")]

    @property
    def tokens(self) -> int:
        """Number of tokens per sample."""
        return _size(self.value.shape[a] for a in _axes(self.layout, "t"))

    @property
    def channels(self) -> int:
        """Number of channels per token."""
        return _size(self.value.shape[a] for a in _axes(self.layout, "c"))


def default_layout(value: Tensor) -> str:
    """The usual layout in PyTorch: (batch, tokens, channels), images (batch, channels, height, width), or clips."""
    if value.dim() not in LAYOUTS:
        raise InputError(f"a tensor of shape {tuple(value.shape)} has no default layout: wrap it in Content")
    return LAYOUTS[value.dim()]


def to_pixels(contents: Sequence[Content]) -> Tensor:
    """Images (batch, channels, 1, pixels) whose pixels are the concatenated tokens of all values."""
    most = max(c.channels for c in contents)
    parts = [c.value.permute(_order(c.layout)).reshape(c.batch, c.channels, c.tokens).transpose(1, 2) for c in contents]
    padded = [torch.nn.functional.pad(p, (0, most - p.shape[2])) for p in parts]
    return torch.cat(padded, 1).transpose(1, 2).unsqueeze(2)


def from_pixels(images: Tensor, contents: Sequence[Content]) -> list[Tensor]:
    """The values from images that hold their tokens, the inverse of `to_pixels`."""
    values, start = [], 0
    for c in contents:
        piece = images[:, : c.channels, 0, start : start + c.tokens]
        order = _order(c.layout)
        split = piece.reshape(-1, *(c.value.shape[a] for a in order[1:]))
        values.append(split.permute([order.index(a) for a in range(len(order))]))
        start += c.tokens
    return values


def _order(layout: str) -> list[int]:
    """Axes in the order batch, channels, tokens."""
    return [*_axes(layout, "b"), *_axes(layout, "c"), *_axes(layout, "t")]


def _axes(layout: str, letter: str) -> list[int]:
    return [axis for axis, meaning in enumerate(layout) if meaning == letter]


def _size(sizes: object) -> int:
    return int(torch.Size(sizes).numel())  # type: ignore[arg-type]
