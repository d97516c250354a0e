"""One line of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlfx import TlfxError


@dataclass(frozen=True)
class Entry:
    """A model by its source, the size of one image or clip, and how the alignment is expected to end."""

    source: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...] = (3, 32, 32)
    error: type[TlfxError] | None = None
    """What it is refused with; None for a model that must be aligned."""
    reason: str = ""
    """Words of the message of a refusal, as a pattern."""
    rounding: float = 0.0
    """How far outputs may be from those without alignment, where the library itself computes otherwise when traced."""

    @property
    def status(self) -> str:
        """What is expected of it."""
        return "ok" if self.error is None else "refused"

    def model(self) -> nn.Module:
        """The model with the same random weights at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build()

    def images(self, batch: int = 2) -> Tensor:
        """Random images that it takes."""
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(0))
