"""Spellings of products that are put side by side: joined, written, chosen by a mask, or added to padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.attention import weights
from equivalents.spelling import CHANNELS, TOKENS, Group, tokens

__all__ = ["GROUPS"]

HALF = TOKENS // 2
FIRST = torch.arange(TOKENS)[:, None] < HALF
PARTS = {
    "w": nn.Parameter(torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(8))),
    "scale": torch.rand(CHANNELS, generator=torch.Generator().manual_seed(9)) + 0.2,
    "sizes": torch.rand(TOKENS, 1, generator=torch.Generator().manual_seed(10)) + 0.2,
}
Function = Callable[[Any, Tensor], Tensor]
"""Parts and tokens to the half of the tokens that is put in front, or to all tokens."""


def assigned(x: Tensor, y: Tensor) -> Tensor:
    out = y.clone()
    out[:, :HALF] = x
    return out


def copied(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[:, HALF:].copy_(y[:, HALF:])
    out.narrow(1, 0, HALF).copy_(x)
    return out


def hidden(y: Tensor) -> Tensor:
    out = y.clone()
    out[:, :HALF] = 0.0
    return out


def both(x: Tensor) -> Tensor:
    return torch.cat((x, x), 1)


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cat": lambda x, y: torch.cat((x, y[:, HALF:]), 1),
    "assigned": assigned,
    "copied": copied,
    "slice_scatter": lambda x, y: y.slice_scatter(x, 1, 0, HALF),
    "index_copy": lambda x, y: y.index_copy(1, torch.arange(HALF), x),
    "where": lambda x, y: torch.where(FIRST, both(x), y),
    "masked": lambda x, y: both(x) * FIRST + y * ~FIRST,
    "padded": lambda x, y: F.pad(x, (0, 0, 0, HALF)) + F.pad(y[:, HALF:], (0, 0, HALF, 0)),
}
"""The half of the tokens in front, and all tokens of which the second half follows."""


def joined(name: str, front: Function, then: Function, before: Function = lambda s, y: y) -> Group:
    """All ways to put ``front`` of tokens before their second half, followed by ``then``."""

    def spelling(join: Callable[[Tensor, Tensor], Tensor]) -> Any:
        def body(s: Any, z: Tensor) -> Tensor:
            y = before(s, tokens(z))
            return then(s, join(front(s, y), y))

        return body

    return Group(f"side by side, {name}", PARTS).add(**{key: spelling(join) for key, join in JOINS.items()})


def by_matrix(s: Any, y: Tensor) -> Tensor:
    return s.w @ y


def gated(s: Any, y: Tensor) -> Tensor:
    return y * y.mean(1, keepdim=True).sigmoid()


SIDES = [
    joined("half as large", lambda s, y: y[:, HALF:] * 0.5, by_matrix),
    joined("by channel, then a residual", lambda s, y: y[:, HALF:] * s.scale, lambda s, y: y + y.flip(1)),
    joined("by token", lambda s, y: y[:, :HALF] * s.sizes[:HALF], by_matrix),
    joined("a function of gated tokens", lambda s, y: F.gelu(y[:, :HALF]), by_matrix, gated),
    joined("a function of products", lambda s, y: F.gelu(y[:, HALF:]), by_matrix, lambda s, y: y * s.sizes),
]


def attended(s: Any, z: Tensor) -> Tensor:
    """(batch, queries, keys, channels)"""
    return weights(s, z)[..., None] * tokens(z)[:, None]


SKIP = Group("attention and a skip path with a factor", PARTS).add(
    matmul=lambda s, z: tokens(z) * s.sizes + weights(s, z) @ tokens(z),
    product=lambda s, z: tokens(z) * s.sizes + attended(s, z).sum(2),
    keys_first=lambda s, z: tokens(z) * s.sizes + attended(s, z).transpose(1, 2).sum(1),
    einsum=lambda s, z: tokens(z) * s.sizes + torch.einsum("bqk,bkc->bqc", weights(s, z), tokens(z)),
    in_place=lambda s, z: (tokens(z) * s.sizes).add_(attended(s, z).sum(2)),
)
SKIP_OF_MATRIX = Group("a matrix and a skip path with a factor", PARTS).add(
    matmul=lambda s, z: tokens(z) * s.sizes + s.w @ tokens(z),
    product=lambda s, z: tokens(z) * s.sizes + (s.w[..., None] * tokens(z)[:, None]).sum(2),
    conv1d=lambda s, z: torch.add(tokens(z) * s.sizes, F.conv1d(tokens(z), s.w[..., None])),
)


def centred(y: Tensor) -> Tensor:
    return y - y.mean(-1, keepdim=True)


def written_norm(y: Tensor) -> Tensor:
    return centred(y) / (centred(y).square().mean(-1, keepdim=True) + 1e-5).sqrt()


def two(s: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    return tokens(z), s.w @ tokens(z)


def total(s: Any, z: Tensor) -> Tensor:
    one, other = two(s, z)
    return one + other


def halves(s: Any, z: Tensor) -> Tensor:
    one, other = two(s, z)
    return one * 0.5 + other * 0.5


NORM = Group("the norm of a mean of two, weighted", PARTS).add(
    half=lambda s, z: (s.sizes * F.layer_norm(total(s, z) * 0.5, (CHANNELS,))).sum(1),
    halves=lambda s, z: (s.sizes * F.layer_norm(halves(s, z), (CHANNELS,))).sum(1),
    written=lambda s, z: (s.sizes * written_norm(total(s, z) * 0.5)).sum(1),
    mean_of_stack=lambda s, z: (s.sizes * F.layer_norm(torch.stack(two(s, z)).mean(0), (CHANNELS,))).sum(1),
    written_mean_of_stack=lambda s, z: (s.sizes * written_norm(torch.stack(two(s, z)).mean(0))).sum(1),
    written_quotient=lambda s, z: (s.sizes * written_norm(total(s, z) / 2)).sum(1),
    written_lerp=lambda s, z: (s.sizes * written_norm(torch.lerp(*two(s, z), 0.5))).sum(1),
    by_var=lambda s, z: (
        s.sizes * (lambda y: centred(y) * (y.var(-1, keepdim=True, correction=0) + 1e-5).rsqrt())(total(s, z) * 0.5)
    ).sum(1),
)
GOALS = torch.arange(TOKENS).square() % 5
USED = GOALS.unique()
MEMBERS = (torch.unique(GOALS, return_inverse=True)[1] == torch.arange(len(USED))[:, None]).float()
PLACES = MEMBERS.argmax(0)


def of_channels(z: Tensor) -> Tensor:
    return PLACES[None, :, None].expand(len(z), TOKENS, CHANNELS)


def empty(z: Tensor) -> Tensor:
    return torch.zeros(len(z), len(USED), CHANNELS)


def attend(y: Tensor) -> Tensor:
    return (y @ y.mT).softmax(-1) @ y


MEANS = Group("attention to means of groups").add(
    matmul=lambda s, z: attend((MEMBERS / MEMBERS.sum(1, keepdim=True)) @ tokens(z)),
    scatter_reduce=lambda s, z: attend(
        empty(z).scatter_reduce(1, of_channels(z), tokens(z), "mean", include_self=False)
    ),
    index_reduce=lambda s, z: attend(empty(z).index_reduce(1, PLACES, tokens(z), "mean", include_self=False)),
    index_add_by_size=lambda s, z: attend(empty(z).index_add(1, PLACES, tokens(z)) / MEMBERS.sum(1)[:, None]),
    scatter_add_by_size=lambda s, z: attend(
        empty(z).scatter_add(1, of_channels(z), tokens(z)) / MEMBERS.sum(1)[:, None]
    ),
)

HIDDEN = Group("masked tokens less the mean of all", PARTS).add(
    product=lambda s, z: tokens(z) * ~FIRST - tokens(z).mean(1, keepdim=True),
    where=lambda s, z: torch.where(FIRST, 0.0, tokens(z)) - tokens(z).mean(1, keepdim=True),
    cat=lambda s, z: torch.cat((z.new_zeros(len(z), HALF, CHANNELS), tokens(z)[:, HALF:]), 1) - tokens(z).mean(1, True),
    written=lambda s, z: hidden(tokens(z)) - tokens(z).mean(1, keepdim=True),
)

GROUPS = [HIDDEN, *SIDES, SKIP, SKIP_OF_MATRIX, NORM, MEANS]
