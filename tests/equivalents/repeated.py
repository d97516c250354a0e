"""Spellings of tokens that occur more than once: under a matrix, and as a gate of windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import SIDE, TOKENS, Group, tokens

__all__ = ["GROUPS"]

FEW = 5
HALF = SIDE // 2


def matrix(columns: int) -> dict[str, Any]:
    return {"w": nn.Parameter(torch.randn(3, columns, generator=torch.Generator().manual_seed(columns)))}


def first_again(z: Tensor) -> Tensor:
    return torch.cat((tokens(z), tokens(z)[:, :FEW]), 1)


SOME = Group("a matrix over tokens of which some occur twice", matrix(TOKENS + FEW)).add(
    product=lambda s, z: (s.w[..., None] * first_again(z)[:, None]).sum(2),
    matmul=lambda s, z: s.w @ first_again(z),
    linear=lambda s, z: F.linear(first_again(z).mT, s.w).mT,
    bmm=lambda s, z: torch.bmm(s.w.expand(len(z), -1, -1), first_again(z)),
    conv1d=lambda s, z: F.conv1d(first_again(z), s.w[..., None]),
    einsum=lambda s, z: torch.einsum("mn,bnc->bmc", s.w, first_again(z)),
    index=lambda s, z: s.w @ tokens(z)[:, torch.arange(TOKENS + FEW) % TOKENS],
    padded=lambda s, z: s.w @ F.pad(tokens(z).mT, (0, FEW), mode="circular").mT,
)
ALL = Group("a matrix over all tokens twice", matrix(2 * TOKENS)).add(
    product=lambda s, z: (s.w[..., None] * torch.cat((tokens(z), tokens(z)), 1)[:, None]).sum(2),
    cat=lambda s, z: s.w @ torch.cat((tokens(z), tokens(z)), 1),
    repeat=lambda s, z: s.w @ tokens(z).repeat(1, 2, 1),
    stack=lambda s, z: s.w @ torch.stack((tokens(z), tokens(z)), 1).flatten(1, 2),
    expand=lambda s, z: s.w @ tokens(z)[:, None].expand(-1, 2, -1, -1).flatten(1, 2),
    index=lambda s, z: s.w @ tokens(z)[:, torch.arange(2 * TOKENS) % TOKENS],
    conv1d=lambda s, z: F.conv1d(tokens(z).repeat(1, 2, 1), s.w[..., None]),
)


def gated(repeat: Callable[[Tensor], Tensor]) -> Any:
    """Tokens times a gate of each window of 2 × 2, which ``repeat`` brings to the size of the image."""
    return lambda s, z: tokens(z * repeat(F.avg_pool2d(z, 2).sigmoid()))


def windows(z: Tensor) -> Tensor:
    return z.unflatten(3, (HALF, 2)).unflatten(2, (HALF, 2))


def as_tokens(y: Tensor) -> Tensor:
    return tokens(y.flatten(4).flatten(2, 3))


def between(gate: Tensor) -> Tensor:
    return gate[:, :, :, None, :, None]


SMALL = torch.arange(SIDE) // 2
WINDOWS = Group("a gate of windows").add(
    axes=lambda s, z: as_tokens(windows(z) * windows(z).mean((3, 5), keepdim=True).sigmoid()),
    pooled=lambda s, z: as_tokens(windows(z) * between(F.avg_pool2d(z, 2).sigmoid())),
    interpolated=gated(lambda g: F.interpolate(g, scale_factor=2)),
    exact=gated(lambda g: F.interpolate(g, size=SIDE, mode="nearest-exact")),
    repeated=gated(lambda g: g.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    expanded=gated(lambda g: between(g).expand(-1, -1, -1, 2, -1, 2).flatten(4).flatten(2, 3)),
    indexed=gated(lambda g: g[:, :, SMALL][..., SMALL]),
    sigmoid_last=lambda s, z: tokens(z * F.interpolate(F.avg_pool2d(z, 2), scale_factor=2).sigmoid()),
)

GROUPS = [SOME, ALL, WINDOWS]
