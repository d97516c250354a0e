"""Spellings of what follows tokens that are contracted without a query: latents, slots, attention of channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, tokens

__all__ = ["GROUPS"]

LATENTS = 4


def by_matrix(s: Any, z: Tensor) -> Tensor:
    """Latents that attend to tokens."""
    return (s.q(s.latents) @ s.k(tokens(z)).mT).softmax(-1) @ s.v(tokens(z))


def fused(s: Any, z: Tensor) -> Tensor:
    queries = s.q(s.latents).expand(len(z), -1, -1)
    return F.scaled_dot_product_attention(queries, s.k(tokens(z)), s.v(tokens(z)), scale=1.0)


def maps(s: Any, z: Tensor) -> Tensor:
    """Weights of the tokens of each slot, (batch, slots, tokens)."""
    weights: Tensor = s.maps(z).flatten(2).softmax(-1)
    return weights


def slots(s: Any, z: Tensor) -> Tensor:
    return maps(s, z) @ tokens(z)


def one_by_one(s: Any, z: Tensor) -> Tensor:
    return torch.stack([(maps(s, z)[:, i, :, None] * tokens(z)).sum(1) for i in range(LATENTS)], 1)


def parts(**more: Any) -> dict[str, Any]:
    torch.manual_seed(6)
    return {
        "latents": nn.Parameter(torch.randn(LATENTS, CHANNELS)),
        "maps": nn.Conv2d(CHANNELS, LATENTS, 1),
        **{name: make() for name, make in more.items()},
    }


def followed_by(name: str, then: Any, **more: Any) -> list[Group]:
    """Groups of ``then``, which takes the parts, four latents or slots, and the features."""
    return [
        Group(f"latents, then {name}", parts(**more)).add(
            fused=lambda s, z: then(s, fused(s, z), z), matmul=lambda s, z: then(s, by_matrix(s, z), z)
        ),
        Group(f"slots, then {name}", parts(**more)).add(
            one_by_one=lambda s, z: then(s, one_by_one(s, z), z), matmul=lambda s, z: then(s, slots(s, z), z)
        ),
    ]


def upsampled(s: Any, x: Tensor, z: Tensor) -> Tensor:
    return tokens(z + F.interpolate(x.mT.unflatten(2, (2, 2)), scale_factor=2, mode="bilinear"))


def state(s: Any, x: Tensor, z: Tensor) -> Tensor:
    out: Tensor = s.cell(x[:, 0], tokens(z)[:, 0])
    return out


FOLLOWED = [
    *followed_by("a recurrent cell", state, cell=lambda: nn.GRUCell(CHANNELS, CHANNELS)),
    *followed_by(
        "a recurrence",
        lambda s, x, z: s.recurrent(x, tokens(z)[None, :, 0].contiguous())[0],
        recurrent=lambda: nn.GRU(CHANNELS, CHANNELS, batch_first=True),
    ),
    *followed_by(
        "a convolution",
        lambda s, x, z: s.conv(x.mT).mT + tokens(z)[:, :LATENTS],
        conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
    ),
    *followed_by("an interpolation", upsampled),
    *followed_by("a pool", lambda s, x, z: F.avg_pool1d(x.mT, 2).mT + tokens(z)[:, :2]),
    *followed_by("a running sum", lambda s, x, z: x.cumsum(1)),
    *followed_by("a transform", lambda s, x, z: torch.fft.fft(x, dim=1).real),
    *followed_by("a product of two", lambda s, x, z: x * x.flip(1)),
]


def similarity(z: Tensor) -> Tensor:
    """Of channels, over all tokens."""
    return z.flatten(2) @ z.flatten(2).mT


def normalised(exponentials: Tensor) -> Tensor:
    return exponentials / exponentials.sum(-1, keepdim=True)


CHANNEL = Group("attention of channels").add(
    softmax=lambda s, z: (similarity(z).softmax(-1) @ z.flatten(2)).mT,
    log_softmax=lambda s, z: (similarity(z).log_softmax(-1).exp() @ z.flatten(2)).mT,
    exp=lambda s, z: (normalised(similarity(z).exp()) @ z.flatten(2)).mT,
    shifted=lambda s, z: (normalised((similarity(z) - similarity(z).amax(-1, keepdim=True)).exp()) @ z.flatten(2)).mT,
)


def less_largest(x: Tensor) -> Tensor:
    return torch.max(x, -1, keepdim=True)[0].expand_as(x) - x


DUAL = Group("attention of channels by dissimilarity").add(
    negative=lambda s, z: (z.flatten(2) + (-similarity(z)).softmax(-1) @ z.flatten(2)).mT,
    less_largest=lambda s, z: (z.flatten(2) + less_largest(similarity(z)).softmax(-1) @ z.flatten(2)).mT,
    recomputed=lambda s, z: (
        (z.flatten(2) + (similarity(z).amax(-1, keepdim=True) - similarity(z)).softmax(-1) @ z.flatten(2)).mT
    ),
)


def gates(s: Any, z: Tensor) -> Tensor:
    """A gate of the tokens for each slot, which is no softmax, (batch, slots, tokens)."""
    out: Tensor = s.maps(z).flatten(2).sigmoid()
    return out


PROJECTED = Group("tokens projected to slots by gates", parts()).add(
    matmul=lambda s, z: gates(s, z) @ tokens(z) / TOKENS,
    channels_first=lambda s, z: (z.flatten(2) @ gates(s, z).mT).mT / TOKENS,
    maps_times_tokens=lambda s, z: (gates(s, z)[:, :, None] * z.flatten(2)[:, None]).mean(-1),
    tokens_times_maps=lambda s, z: (z.flatten(2)[:, None] * gates(s, z)[:, :, None]).mean(-1),
    einsum=lambda s, z: torch.einsum("bsn,bnc->bsc", gates(s, z), tokens(z)) / TOKENS,
    einsum_in_other_order=lambda s, z: torch.einsum("bnc,bsn->bsc", tokens(z), gates(s, z)) / TOKENS,
    slot_by_slot=lambda s, z: torch.stack(
        [(gates(s, z)[:, i, :, None] * tokens(z)).mean(1) for i in range(LATENTS)], 1
    ),
)


def branches(s: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Two branches (batch, 2, channels, height, width), and a weight of each channel of each."""
    x = s.branches(z).view(len(z), 2, CHANNELS, SIDE, SIDE)
    return x, s.weigh(x.sum(1).mean((2, 3))).view(-1, 2, CHANNELS).softmax(1)


def split(mix: Any) -> Any:
    return lambda s, z: tokens(z + s.out(mix(*branches(s, z))))


SPLIT = Group(
    "split attention",
    parts(
        branches=lambda: nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, groups=2),
        weigh=lambda: nn.Linear(CHANNELS, 2 * CHANNELS),
        out=lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    ),
).add(
    product=split(lambda x, a: (x * a[..., None, None]).sum(1)),
    plus=split(lambda x, a: x[:, 0] * a[:, 0, :, None, None] + x[:, 1] * a[:, 1, :, None, None]),
    einsum=split(lambda x, a: torch.einsum("brchw,brc->bchw", x, a)),
    einsum_in_other_order=split(lambda x, a: torch.einsum("brc,brchw->bchw", a, x)),
)


def beside_scores(score: Any) -> Any:
    return lambda s, z: tokens(z + s.out(z + score(z)))


SCORES = Group("tokens and their scores", parts(out=lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))).add(
    product=beside_scores(lambda z: (z * z.mean((2, 3), keepdim=True)).sum(1, keepdim=True)),
    matmul=beside_scores(lambda z: (tokens(z) @ z.mean((2, 3))[..., None]).mT.unflatten(2, (SIDE, SIDE))),
    einsum=beside_scores(lambda z: torch.einsum("bchw,bc->bhw", z, z.mean((2, 3)))[:, None]),
)


def gate(s: Any, z: Tensor) -> Tensor:
    """Of tokens, (batch, 1, height, width)."""
    out: Tensor = s.maps(z).sum(1, keepdim=True).sigmoid()
    return out


VECTOR = Group("a vector of the image times a gate of tokens", parts()).add(
    product=lambda s, z: tokens(z.mean((2, 3), keepdim=True) * gate(s, z)),
    expanded=lambda s, z: tokens(z.mean((2, 3), keepdim=True).expand_as(z) * gate(s, z)),
    einsum=lambda s, z: torch.einsum("bc,bn->bnc", z.mean((2, 3)), gate(s, z).flatten(1)),
    einsum_in_other_order=lambda s, z: torch.einsum("bn,bc->bnc", gate(s, z).flatten(1), z.mean((2, 3))),
    matmul=lambda s, z: gate(s, z).flatten(2).mT @ z.mean((2, 3))[:, None],
)

GROUPS = [*FOLLOWED, CHANNEL, DUAL, PROJECTED, SPLIT, SCORES, VECTOR]
