"""Spellings of tokens, and of weights of tokens, that are written into zeros at places which the image decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equivalents.indices import samples
from equivalents.spelling import CHANNELS, TOKENS, Group, convolved, followed, tokens

__all__ = ["GROUPS"]

EXPERTS, ROWS, CENTRES = 3, 5, 2
KEPT = 13
"""So many tokens that no window of 3 × 3 is without any."""


def parts() -> dict[str, Any]:
    torch.manual_seed(8)
    return {
        "gate": nn.Linear(CHANNELS, EXPERTS),
        "experts": nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(EXPERTS)),
        "score": nn.Linear(CHANNELS, 1),
        "conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        "rows": nn.Parameter(torch.randn(ROWS, TOKENS)),
        "centres": nn.Parameter(torch.randn(CENTRES, CHANNELS)),
    }


def two_of(s: Any, z: Tensor) -> Tensor:
    """Weights of the experts of each token, zero but for two."""
    probabilities = s.gate(tokens(z)).softmax(-1)
    largest, chosen = probabilities.topk(2, -1)
    return torch.zeros_like(probabilities).scatter(-1, chosen, largest / largest.sum(-1, keepdim=True))


def of_experts(s: Any, z: Tensor) -> Tensor:
    """(batch, tokens, experts, channels)."""
    return torch.stack([expert(tokens(z)) for expert in s.experts], 2)


ROUTED = Group("two experts for each token", parts()).add(
    plus=lambda s, z: sum(two_of(s, z)[..., i : i + 1] * expert(tokens(z)) for i, expert in enumerate(s.experts)),
    product=lambda s, z: (two_of(s, z)[..., None] * of_experts(s, z)).sum(2),
    einsum=lambda s, z: torch.einsum("bne,bned->bnd", two_of(s, z), of_experts(s, z)),
    matmul=lambda s, z: (two_of(s, z)[:, :, None] @ of_experts(s, z))[:, :, 0],
)


def winners(z: Tensor) -> Tensor:
    largest, chosen = tokens(z).topk(2, -1)
    return torch.zeros_like(tokens(z)).scatter(-1, chosen, largest)


WINNERS = Group("the largest channels of each token").add(
    mask=lambda s, z: tokens(z) * (tokens(z) >= tokens(z).topk(2, -1)[0][..., -1:]),
    scatter=lambda s, z: winners(z),
)


def chosen(s: Any, z: Tensor) -> Tensor:
    """Places (batch, KEPT) of the tokens that are kept."""
    places: Tensor = s.score(tokens(z))[..., 0].topk(KEPT, 1)[1]
    return places


def of_channels(places: Tensor) -> Tensor:
    return places[..., None].expand(-1, -1, CHANNELS)


def by_mask(s: Any, z: Tensor) -> Tensor:
    mask = torch.zeros_like(tokens(z)[..., 0]).scatter(1, chosen(s, z), 1.0)
    return tokens(z) * mask[..., None]


def by_scatter(s: Any, z: Tensor) -> Tensor:
    places = of_channels(chosen(s, z))
    return torch.zeros_like(tokens(z)).scatter(1, places, tokens(z).gather(1, places))


def by_put(s: Any, z: Tensor) -> Tensor:
    out = torch.zeros_like(tokens(z))
    out[samples(z), chosen(s, z)] = tokens(z)[samples(z), chosen(s, z)]
    return out


def kept(name: str, then: Any) -> Group:
    return followed(f"kept tokens, then {name}", parts(), then, mask=by_mask, scatter=by_scatter, put=by_put)


def order(s: Any, z: Tensor) -> Tensor:
    places: Tensor = s.score(tokens(z))[..., 0].argsort(1)
    return places


def put_in_order(s: Any, z: Tensor) -> Tensor:
    out = torch.zeros_like(tokens(z))
    out[samples(z), order(s, z)] = tokens(z)
    return out


ORDERED = Group("tokens in an order, mixed by a matrix", parts()).add(
    gather=lambda s, z: s.rows @ tokens(z).gather(1, of_channels(order(s, z).argsort(1))),
    scatter=lambda s, z: s.rows @ torch.zeros_like(tokens(z)).scatter(1, of_channels(order(s, z)), tokens(z)),
    put=lambda s, z: s.rows @ put_in_order(s, z),
)


def cluster(s: Any, z: Tensor) -> Tensor:
    """The number of the nearest of learned centres, (batch, tokens)."""
    return (tokens(z) @ s.centres.T).argmax(-1)


def flat_sums(s: Any, z: Tensor) -> Tensor:
    """Sums of the tokens of all samples, by samples and clusters."""
    places = cluster(s, z) + CENTRES * torch.arange(len(z))[:, None]
    sums = torch.zeros(len(z) * CENTRES, CHANNELS).index_add(0, places.flatten(), tokens(z).flatten(0, 1))
    return sums.view(-1, CENTRES, CHANNELS)


CLUSTERS = Group("sums of tokens by cluster", parts()).add(
    masks=lambda s, z: torch.stack([(tokens(z) * (cluster(s, z) == k)[..., None]).sum(1) for k in range(CENTRES)], 1),
    scatter_add=lambda s, z: torch.zeros(len(z), CENTRES, CHANNELS).scatter_add(
        1, of_channels(cluster(s, z)), tokens(z)
    ),
    index_add=flat_sums,
)
SHOWN = (torch.arange(TOKENS) % 3 > 0).float()
DIAGONAL = Group("tokens under a known mask, convolved", parts()).add(
    product=lambda s, z: convolved(s, tokens(z) * SHOWN.to(z)[:, None]),
    diagonal=lambda s, z: convolved(s, torch.diag(SHOWN).to(z) @ tokens(z)),
    diagonal_by_einsum=lambda s, z: convolved(s, torch.einsum("nm,bmc->bnc", torch.diag(SHOWN).to(z), tokens(z))),
)

GROUPS = [
    ROUTED,
    WINNERS,
    kept("a convolution", convolved),
    kept("their mean", lambda s, x: x.mean(1)),
    ORDERED,
    CLUSTERS,
    DIAGONAL,
]
