"""Spellings of attention whose keys or values are learned, repeated for each query, padded, or in parts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, in_heads, joined, tokens

__all__ = ["GROUPS"]

NUMBERS = torch.Generator().manual_seed(5)


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=NUMBERS))


def scores(s: Any, z: Tensor) -> Tensor:
    return s.q(tokens(z)) @ s.k(tokens(z)).mT


def weights(s: Any, z: Tensor) -> Tensor:
    return scores(s, z).softmax(-1)


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x[:, None] for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]


def expanded(parameter: Tensor, z: Tensor) -> Tensor:
    return parameter.expand(len(z), -1, -1)


def keys_and_values(s: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Those of tokens, then learned ones."""
    keys, values = s.k(tokens(z)), s.v(tokens(z))
    return torch.cat([keys, expanded(s.keys, z)], 1), torch.cat([values, expanded(s.values, z)], 1)


def over_both(s: Any, z: Tensor) -> Tensor:
    return (s.q(tokens(z)) @ keys_and_values(s, z)[0].mT).softmax(-1)


def over_both_scores(s: Any, z: Tensor) -> Tensor:
    """The same, from scores that are computed one after the other."""
    return (torch.cat([scores(s, z), s.q(tokens(z)) @ s.keys.T], -1) * 0.5 / 0.5).softmax(-1)


def in_parts(s: Any, z: Tensor, w: Tensor) -> Tensor:
    return w[..., :TOKENS] @ s.v(tokens(z)) + w[..., TOKENS:] @ s.values


MEMORY = Group("attention to learned keys", {"keys": learned(3, CHANNELS), "values": learned(3, CHANNELS)}).add(
    matmul=lambda s, z: over_both(s, z) @ keys_and_values(s, z)[1],
    fused=lambda s, z: fused(s.q(tokens(z)), *keys_and_values(s, z)),
    parts=lambda s, z: in_parts(s, z, over_both(s, z)),
    parts_by_linear=lambda s, z: (lambda w: F.linear(w[..., TOKENS:], s.values.T) + w[..., :TOKENS] @ s.v(tokens(z)))(
        over_both(s, z)
    ),
    parts_by_einsum=lambda s, z: (
        lambda w: torch.einsum("bnm,md->bnd", w[..., TOKENS:], s.values) + w[..., :TOKENS] @ s.v(tokens(z))
    )(over_both(s, z)),
    parts_expanded=lambda s, z: (lambda w: w[..., :TOKENS] @ s.v(tokens(z)) + w[..., TOKENS:] @ expanded(s.values, z))(
        over_both(s, z)
    ),
    scores_joined=lambda s, z: over_both_scores(s, z) @ keys_and_values(s, z)[1],
    scores_joined_parts=lambda s, z: in_parts(s, z, over_both_scores(s, z)),
)

RELATIVE = Group(
    "attention to values with positions",
    {"place": learned(TOKENS, CHANNELS), "places": learned(TOKENS, TOKENS, CHANNELS)},
).add(
    without=lambda s, z: weights(s, z) @ s.v(tokens(z)),
    added=lambda s, z: weights(s, z) @ (s.v(tokens(z)) + s.place),
    apart=lambda s, z: (lambda w: w @ s.v(tokens(z)) + w @ s.place)(weights(s, z)),
    for_each_query=lambda s, z: torch.einsum("bqk,bqkc->bqc", weights(s, z), s.v(tokens(z))[:, None] + s.places),
    for_each_query_apart=lambda s, z: (lambda w: w @ s.v(tokens(z)) + torch.einsum("bqk,qkc->bqc", w, s.places))(
        weights(s, z)
    ),
    product=lambda s, z: (weights(s, z)[..., None] * (s.v(tokens(z))[:, None] + s.places)).sum(2),
    expanded=lambda s, z: torch.einsum(
        "bqk,bqkc->bqc", weights(s, z), s.v(tokens(z))[:, None].expand(-1, TOKENS, -1, -1)
    ),
    repeated=lambda s, z: (weights(s, z)[:, :, None] @ s.v(tokens(z))[:, None].repeat(1, TOKENS, 1, 1))[:, :, 0],
)


def vectors(s: Any, z: Tensor) -> Tensor:
    """Weights (batch, queries, keys, channels) of vector attention."""
    return (s.q(tokens(z))[:, :, None] - s.k(tokens(z))[:, None] + s.places).softmax(2)


VECTORS = Group("vector attention", {"places": learned(TOKENS, TOKENS, CHANNELS)}).add(
    product=lambda s, z: (vectors(s, z) * s.v(tokens(z))[:, None]).sum(2),
    product_the_other_way=lambda s, z: (s.v(tokens(z))[:, None] * vectors(s, z)).sum(2),
    einsum=lambda s, z: torch.einsum("bqkc,bkc->bqc", vectors(s, z), s.v(tokens(z))),
    einsum_the_other_way=lambda s, z: torch.einsum("bkc,bqkc->bqc", s.v(tokens(z)), vectors(s, z)),
    product_with_positions=lambda s, z: (vectors(s, z) * (s.v(tokens(z))[:, None] + s.places)).sum(2),
    einsum_with_positions=lambda s, z: torch.einsum(
        "bqkc,bqkc->bqc", vectors(s, z), s.v(tokens(z))[:, None] + s.places
    ),
)


def around(x: Tensor) -> Tensor:
    """Tokens to the windows (batch, tokens, 9, channels) around them, with zeros beyond the edges."""
    image = x.mT.unflatten(2, (SIDE, SIDE))
    return F.unfold(image, 3, padding=1).unflatten(1, (CHANNELS, 9)).permute(0, 3, 2, 1)


def pooled(z: Tensor) -> Tensor:
    return tokens(F.avg_pool2d(z, 2))


def near_scores(s: Any, z: Tensor) -> Tensor:
    return (around(s.k(tokens(z))) @ s.q(tokens(z))[..., None])[..., 0]


def near(s: Any, z: Tensor) -> Tensor:
    return near_scores(s, z).softmax(-1)


NEAR = Group("attention to windows of biased values").add(
    matmul=lambda s, z: (near(s, z)[:, :, None] @ around(s.v(tokens(z))))[:, :, 0],
    product=lambda s, z: (near(s, z)[..., None] * around(s.v(tokens(z)))).sum(2),
    einsum=lambda s, z: torch.einsum("bnk,bnkc->bnc", near(s, z), around(s.v(tokens(z)))),
    fused=lambda s, z: F.scaled_dot_product_attention(
        s.q(tokens(z))[:, :, None], around(s.k(tokens(z))), around(s.v(tokens(z))), scale=1.0
    )[:, :, 0],
)


def near_and_far(s: Any, z: Tensor) -> Tensor:
    """Weights of the windows and of pooled tokens."""
    far = s.q(tokens(z)) @ s.k(pooled(z)).mT
    return torch.cat([near_scores(s, z), far], -1).softmax(-1)


AGGREGATED = Group("attention to windows and pooled tokens").add(
    joined=lambda s, z: (
        near_and_far(s, z)[:, :, None]
        @ torch.cat([around(s.v(tokens(z))), s.v(pooled(z))[:, None].expand(-1, TOKENS, -1, -1)], 2)
    )[:, :, 0],
    matmul=lambda s, z: (
        lambda w: (w[..., :9][:, :, None] @ around(s.v(tokens(z))))[:, :, 0] + w[..., 9:] @ s.v(pooled(z))
    )(near_and_far(s, z)),
    product=lambda s, z: (lambda near, far: (near[..., None] * around(s.v(tokens(z)))).sum(2) + far @ s.v(pooled(z)))(
        *near_and_far(s, z).split([9, SIDE], -1)
    ),
)


def padded(z: Tensor) -> Tensor:
    return F.pad(tokens(z)[:, :12], (0, 0, 0, 4))


def over_padded(s: Any, z: Tensor) -> Tensor:
    return (s.q(padded(z)) @ s.k(padded(z)).mT).softmax(-1)


PADDED = Group("attention to padding with a bias").add(
    matmul=lambda s, z: over_padded(s, z) @ s.v(padded(z)),
    fused=lambda s, z: fused(*(f(padded(z)) for f in (s.q, s.k, s.v))),
    product=lambda s, z: (over_padded(s, z)[..., None] * s.v(padded(z))[:, None]).sum(2),
    product_the_other_way=lambda s, z: (s.v(padded(z))[:, None] * over_padded(s, z)[..., None]).sum(2),
)


def of_one_query(s: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The query of one token, which is the mean of all, and keys and values of all, in heads."""
    return in_heads(s.q(tokens(z).mean(1, keepdim=True))), in_heads(s.k(tokens(z))), in_heads(s.v(tokens(z)))


def by_scores(score: Any) -> Any:
    """Attention by scores (batch, heads, tokens) of the one query."""

    def body(s: Any, z: Tensor) -> Tensor:
        query, key, value = of_one_query(s, z)
        return joined(score(query, key)[:, :, None].softmax(-1) @ value)

    return body


ONE_QUERY = Group("heads of one query").add(
    fused=lambda s, z: joined(F.scaled_dot_product_attention(*of_one_query(s, z), scale=1.0)),
    matmul=by_scores(lambda query, key: (query @ key.mT)[:, :, 0]),
    einsum=by_scores(lambda query, key: torch.einsum("bhqd,bhkd->bhqk", query, key)[:, :, 0]),
    einsum_of_a_vector=by_scores(lambda query, key: torch.einsum("bhd,bhkd->bhk", query[:, :, 0], key)),
    product=by_scores(lambda query, key: (query * key).sum(-1)),
)

GROUPS = [ONE_QUERY, MEMORY, RELATIVE, VECTORS, NEAR, AGGREGATED, PADDED]
