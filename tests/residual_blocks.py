"""Models of any depth whose blocks have one residual connection around spatial mixing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
from torch import Tensor, nn


class Residual(nn.Module):
    """A residual connection around a module, whose output is returned too if ``both``."""

    def __init__(self, inner: nn.Module, both: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.both = both

    def forward(self, x: Tensor) -> Any:
        inner = self.inner(x)
        return (x + inner, inner) if self.both else x + inner


def attention(depth: int, fused: bool) -> nn.Module:
    """A ViT with the operator for attention, or with attention that is written out."""
    model = helpers.vit(depth=depth)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def residuals(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Models of residual connections around modules."""
    return lambda depth: nn.Sequential(*(Residual(build()) for _ in range(depth)))
