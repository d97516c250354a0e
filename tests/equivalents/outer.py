"""Spellings of products that are broadcast along different axes: contexts, slots, gates of gates, and parts of a
softmax."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.attention import weights
from equivalents.spelling import CHANNELS, TOKENS, Group, tokens

__all__ = ["GROUPS"]

HALF = TOKENS // 2


def keys(s: Any, z: Tensor) -> Tensor:
    return s.k(tokens(z)).relu()


def read(s: Any, z: Tensor, context: Tensor) -> Tensor:
    """A context (batch, channels, channels) read by positive queries."""
    return s.q(tokens(z)).relu() @ context


def contexts(s: Any, z: Tensor, sizes: list[int]) -> Any:
    """The contexts of parts of the tokens."""
    return (k.mT @ v for k, v in zip(keys(s, z).split(sizes, 1), tokens(z).split(sizes, 1), strict=True))


CONTEXT = Group("a context of linear attention").add(
    matmul=lambda s, z: read(s, z, keys(s, z).mT @ tokens(z)),
    einsum=lambda s, z: read(s, z, torch.einsum("bnc,bnd->bcd", keys(s, z), tokens(z))),
    product=lambda s, z: read(s, z, (keys(s, z)[..., None] * tokens(z)[:, :, None]).sum(1)),
    matmul_of_columns=lambda s, z: read(s, z, (keys(s, z)[..., None] @ tokens(z)[:, :, None]).sum(1)),
    einsum_of_columns=lambda s, z: read(s, z, torch.einsum("bnc,bnd->bncd", keys(s, z), tokens(z)).sum(1)),
    mean=lambda s, z: read(s, z, (keys(s, z)[..., None] * tokens(z)[:, :, None]).mean(1) * TOKENS),
    halves=lambda s, z: read(
        s,
        z,
        keys(s, z)[:, :HALF].mT @ tokens(z)[:, :HALF] + keys(s, z)[:, HALF:].mT @ tokens(z)[:, HALF:],
    ),
    four_parts=lambda s, z: read(s, z, functools.reduce(torch.add, contexts(s, z, [1, 2, 6, 7]))),
    token_by_token=lambda s, z: read(s, z, sum(contexts(s, z, [1] * TOKENS))),
    added_by_alpha=lambda s, z: read(
        s,
        z,
        torch.baddbmm(keys(s, z)[:, :HALF].mT @ tokens(z)[:, :HALF], keys(s, z)[:, HALF:].mT, tokens(z)[:, HALF:]),
    ),
    read_by_product=lambda s, z: (s.q(tokens(z)).relu()[..., None] * (keys(s, z).mT @ tokens(z))[:, None]).sum(2),
)


def slots(s: Any, z: Tensor) -> Tensor:
    """Weights of tokens (batch, tokens, slots), from their neighbours."""
    return tokens(s.conv(z)).softmax(1)


SLOTS = Group("slots", {"conv": nn.Conv2d(CHANNELS, 3, 3, padding=1)}).add(
    matmul=lambda s, z: slots(s, z).mT @ tokens(z),
    einsum=lambda s, z: torch.einsum("bns,bnc->bsc", slots(s, z), tokens(z)),
    product=lambda s, z: (slots(s, z)[..., None] * tokens(z)[:, :, None]).sum(1),
    product_the_other_way=lambda s, z: (tokens(z)[:, :, None] * slots(s, z)[..., None]).sum(1),
    product_of_columns=lambda s, z: (slots(s, z).mT[..., None] * tokens(z)[:, None]).sum(2),
    kept_axis=lambda s, z: (slots(s, z)[..., None] * tokens(z)[:, :, None]).sum(1, keepdim=True)[:, 0],
    slot_by_slot=lambda s, z: torch.stack([(slots(s, z)[..., i : i + 1] * tokens(z)).sum(1) for i in range(3)], 1),
)


BILINEAR = Group("a bilinear layer of two tokens", {"weight": nn.Parameter(torch.randn(5, CHANNELS, CHANNELS))}).add(
    operator=lambda s, z: F.bilinear(tokens(z), tokens(z.flip(2)), s.weight),
    einsum=lambda s, z: torch.einsum("bni,oij,bnj->bno", tokens(z), s.weight, tokens(z.flip(2))),
    outer=lambda s, z: (tokens(z)[..., None] * tokens(z.flip(2))[:, :, None]).flatten(2) @ s.weight.flatten(1).mT,
)

DIAGONAL = Group("a gate as a matrix", {"linear": nn.Linear(CHANNELS, CHANNELS)}).add(
    product=lambda s, z: tokens(z) * z.mean((2, 3)).sigmoid()[:, None],
    diagonal=lambda s, z: tokens(z) @ z.mean((2, 3)).sigmoid().diag_embed(),
    from_the_left=lambda s, z: (z.mean((2, 3)).sigmoid().diag_embed() @ z.flatten(2)).mT,
    times_ones=lambda s, z: tokens(z) @ (z.mean((2, 3)).sigmoid()[:, None] * torch.eye(CHANNELS)),
    einsum=lambda s, z: torch.einsum("bnc,bcd->bnd", tokens(z), z.mean((2, 3)).sigmoid().diag_embed()),
)


def rows(z: Tensor) -> Tensor:
    return z.mean(3, keepdim=True).sigmoid()


def columns(z: Tensor) -> Tensor:
    return z.mean(2, keepdim=True).sigmoid()


GATES = Group("gates of rows and columns").add(
    one_after_another=lambda s, z: tokens(z * rows(z) * columns(z)),
    product=lambda s, z: tokens(z * (rows(z) * columns(z))),
    product_first=lambda s, z: tokens((rows(z) * columns(z)) * z),
    matmul=lambda s, z: tokens(z * (rows(z) @ columns(z))),
    einsum=lambda s, z: torch.einsum("bchw,bch,bcw->bhwc", z, rows(z)[..., 0], columns(z)[:, :, 0]).flatten(1, 2),
)

BOTTLENECK = Group("a gate of channels and tokens", {"conv": nn.Conv2d(CHANNELS, 1, 3, padding=1)}).add(
    of_the_product=lambda s, z: tokens(z * (z.mean((2, 3), keepdim=True) * s.conv(z)).sigmoid()),
    of_the_sum=lambda s, z: tokens(z * (z.mean((2, 3), keepdim=True) + s.conv(z)).sigmoid()),
    one_after_another=lambda s, z: tokens(z * z.mean((2, 3), keepdim=True).sigmoid() * s.conv(z).sigmoid()),
)

PARTS = Group("a softmax in parts").add(
    whole=lambda s, z: weights(s, z) @ tokens(z),
    halves=lambda s, z: (
        weights(s, z)[..., :HALF] @ tokens(z)[:, :HALF] + weights(s, z)[..., HALF:] @ tokens(z)[:, HALF:]
    ),
    one_softmax=lambda s, z: (lambda w: w[..., :4] @ tokens(z)[:, :4] + w[..., 4:] @ tokens(z)[:, 4:])(weights(s, z)),
    three=lambda s, z: functools.reduce(
        torch.add,
        (w @ v for w, v in zip(weights(s, z).split([1, 5, 10], -1), tokens(z).split([1, 5, 10], 1), strict=True)),
    ),
    accumulated=lambda s, z: (lambda w: torch.baddbmm(w[..., :4] @ tokens(z)[:, :4], w[..., 4:], tokens(z)[:, 4:]))(
        weights(s, z)
    ),
)


def branches(s: Any, z: Tensor) -> Any:
    """Three branches of a selective kernel network."""
    return z, s.narrow(z), s.wide(z)


built_in: Any = sum


def shares(s: Any, z: Tensor) -> Tensor:
    """The weights of the branches, (batch, 3, channels), a softmax over the three."""
    of_all: Tensor = s.fc(sum(branches(s, z)).mean((2, 3))).unflatten(1, (3, CHANNELS)).softmax(1)
    return of_all[..., None, None]


def branches_and_shares(s: Any, z: Tensor) -> Any:
    return *branches(s, z), shares(s, z)


SELECTIVE = Group(
    "branches under a softmax",
    {
        "narrow": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        "wide": nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2),
        "fc": nn.Linear(CHANNELS, 3 * CHANNELS),
    },
).add(
    stack=lambda s, z: tokens((torch.stack(branches(s, z), 1) * shares(s, z)).sum(1)),
    einsum=lambda s, z: tokens(
        torch.einsum("bkchw,bkc->bchw", torch.stack(branches(s, z), 1), shares(s, z)[..., 0, 0])
    ),
    joined_as_channels=lambda s, z: tokens(
        (torch.cat(branches(s, z), 1) * shares(s, z).flatten(1, 2)).unflatten(1, (3, CHANNELS)).sum(1)
    ),
    plus=lambda s, z: (lambda a, b, c, w: tokens(a * w[:, 0] + b * w[:, 1] + c * w[:, 2]))(*branches_and_shares(s, z)),
    plus_in_another_order=lambda s, z: (lambda a, b, c, w: tokens(w[:, 0] * a + (w[:, 2] * c + w[:, 1] * b)))(
        *branches_and_shares(s, z)
    ),
    built_in_sum=lambda s, z: tokens(
        built_in(x * w for x, w in zip(branches(s, z), shares(s, z).unbind(1), strict=True))
    ),
    in_place=lambda s, z: (lambda a, b, c, w: tokens((a * w[:, 0]).addcmul_(b, w[:, 1]).addcmul_(c, w[:, 2])))(
        *branches_and_shares(s, z)
    ),
    chunks=lambda s, z: tokens(
        functools.reduce(
            torch.add, (x * w.squeeze(1) for x, w in zip(branches(s, z), shares(s, z).chunk(3, 1), strict=True))
        )
    ),
)

COMPLEX = Group("a sum of phases", {"phase": torch.polar(torch.ones(TOKENS), torch.arange(TOKENS) * torch.pi / 2)}).add(
    mean=lambda s, z: tokens(z).mean(1),
    product=lambda s, z: torch.view_as_real(
        (torch.view_as_complex(tokens(z).contiguous().unflatten(2, (-1, 2))) * s.phase[:, None]).sum(1)
    ).flatten(1),
    matmul=lambda s, z: torch.view_as_real(
        (s.phase[None, None] @ torch.view_as_complex(tokens(z).contiguous().unflatten(2, (-1, 2))))[:, 0]
    ).flatten(1),
)

QUOTIENT = Group("a product with another token").add(
    product=lambda s, z: tokens(z * z.flip(2).sigmoid()),
    quotient=lambda s, z: tokens(z / (1 + (-z.flip(2)).exp())),
    reciprocal=lambda s, z: tokens(z * (1 + (-z.flip(2)).exp()).reciprocal()),
    in_place=lambda s, z: tokens(z.clone().div_(1 + (-z.flip(2)).exp())),
)

GROUPS = [CONTEXT, SLOTS, BILINEAR, DIAGONAL, GATES, BOTTLENECK, PARTS, SELECTIVE, COMPLEX, QUOTIENT]
