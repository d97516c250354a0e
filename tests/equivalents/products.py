"""Spellings of weighted sums: a product that is summed over tokens is a contraction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.attention import weights
from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, convolved, followed, tokens, windows_of_3

__all__ = ["GROUPS"]


def scores(s: Any, z: Tensor) -> Tensor:
    """Weights of tokens (batch, tokens, 1)."""
    return (s.score(tokens(z)) * 9).softmax(1)


def exponentials(s: Any, z: Tensor) -> Tensor:
    return (s.score(tokens(z)) * 9).exp()


def product(s: Any, z: Tensor) -> Tensor:
    return scores(s, z) * tokens(z)


def as_image(s: Any, z: Tensor) -> Tensor:
    return z * scores(s, z).mT.reshape(-1, 1, SIDE, SIDE)


POOLING = Group("attention pooling", {"score": nn.Linear(CHANNELS, 1)}).add(
    matmul=lambda s, z: (scores(s, z).mT @ tokens(z))[:, 0],
    bmm=lambda s, z: torch.bmm(z.flatten(2), scores(s, z))[..., 0],
    baddbmm=lambda s, z: torch.baddbmm(torch.zeros(1, 1, 1), z.flatten(2), scores(s, z))[..., 0],
    einsum=lambda s, z: torch.einsum("bnk,bnc->bc", scores(s, z), tokens(z)),
    einsum_of_a_vector=lambda s, z: torch.einsum("bn,bnc->bc", scores(s, z)[..., 0], tokens(z)),
    einsum_of_three=lambda s, z: torch.einsum("bnk,bnc,n->bc", scores(s, z), tokens(z), torch.ones(TOKENS)),
    vecdot=lambda s, z: torch.linalg.vecdot(scores(s, z), tokens(z), dim=1),
    product=lambda s, z: product(s, z).sum(1),
    product_the_other_way=lambda s, z: (tokens(z) * scores(s, z)).sum(dim=1),
    expanded=lambda s, z: (scores(s, z).expand(-1, -1, CHANNELS) * tokens(z)).sum(1),
    repeated=lambda s, z: (scores(s, z).repeat(1, 1, CHANNELS) * tokens(z)).sum(1),
    in_place=lambda s, z: tokens(z).clone().mul_(scores(s, z)).sum(1),
    mean=lambda s, z: product(s, z).mean(1) * TOKENS,
    product_by_einsum=lambda s, z: torch.einsum("bn,bnc->bnc", scores(s, z)[..., 0], tokens(z)).sum(1),
    product_by_einsum_of_a_column=lambda s, z: torch.einsum("bcn,bnk->bcn", tokens(z).mT, scores(s, z)).sum(2),
    as_image=lambda s, z: as_image(s, z).sum((2, 3)),
    as_image_axis_by_axis=lambda s, z: as_image(s, z).sum(3).sum(2),
    as_image_pooled=lambda s, z: F.adaptive_avg_pool2d(as_image(s, z), 1).flatten(1) * TOKENS,
    as_image_pooled_by_windows=lambda s, z: F.avg_pool2d(as_image(s, z), SIDE).flatten(1) * TOKENS,
    transposed=lambda s, z: (z.flatten(2) * scores(s, z).mT).transpose(1, 2).sum(1),
    reshaped=lambda s, z: product(s, z).reshape(-1, SIDE, SIDE, CHANNELS).sum((1, 2)),
    normalised_after_the_sum=lambda s, z: (tokens(z) * exponentials(s, z)).sum(1) / exponentials(s, z).sum(1),
    normalised_before_the_product=lambda s, z: (
        tokens(z) * (exponentials(s, z) / exponentials(s, z).sum(1, keepdim=True))
    ).sum(1),
    normalised_before_the_sum=lambda s, z: (
        tokens(z) * exponentials(s, z) / exponentials(s, z).sum(1, keepdim=True)
    ).sum(1),
    addcmul=lambda s, z: torch.addcmul(torch.zeros(CHANNELS), tokens(z), scores(s, z)).sum(1),
    linear_before_the_sum=lambda s, z: F.linear(product(s, z), torch.eye(CHANNELS)).sum(1),
    negated=lambda s, z: -(-product(s, z)).sum(1),
    quotient=lambda s, z: (tokens(z) / (1 / scores(s, z))).sum(1),
    two_factors=lambda s, z: (scores(s, z).sqrt() * tokens(z) * scores(s, z).sqrt()).sum(1),
    chunks=lambda s, z: torch.cat(product(s, z).chunk(2, 1), 1).sum(1),
    half_of_it_before=lambda s, z: torch.cat((product(s, z)[:, :8].sum(1, keepdim=True), product(s, z)[:, 8:]), 1).sum(
        1
    ),
    term_by_term=lambda s, z: torch.stack(product(s, z).unbind(1)).sum(0),
    products_of_single_tokens=lambda s, z: torch.stack(
        [w * t for w, t in zip(scores(s, z).unbind(1), tokens(z).unbind(1), strict=True)]
    ).sum(0),
    cumulative_sum=lambda s, z: product(s, z).cumsum(1)[:, -1],
)


def key_by_key(s: Any, z: Tensor) -> Tensor:
    weight, value = weights(s, z), s.v(tokens(z))
    out = torch.zeros_like(value)
    for i in range(TOKENS):
        out = out + weight[:, :, i, None] * value[:, None, i]
    return out


BROADCAST = Group("attention as a product").add(
    matmul=lambda s, z: weights(s, z) @ s.v(tokens(z)),
    broadcast=lambda s, z: (weights(s, z)[..., None] * s.v(tokens(z))[:, None]).sum(2),
    expanded=lambda s, z: (weights(s, z)[..., None] * s.v(tokens(z))[:, None].expand(-1, TOKENS, -1, -1)).sum(2),
    repeated=lambda s, z: (weights(s, z)[..., None] * s.v(tokens(z))[:, None].repeat(1, TOKENS, 1, 1)).sum(2),
    transposed=lambda s, z: (weights(s, z)[:, None] * s.v(tokens(z)).mT[:, :, None]).sum(-1).mT,
    einsum=lambda s, z: torch.einsum("bqk,bkc->bqkc", weights(s, z), s.v(tokens(z))).sum(2),
    one_head=lambda s, z: (weights(s, z)[:, None, :, :, None] * s.v(tokens(z))[:, None, None]).sum(3)[:, 0],
    query_by_query=lambda s, z: torch.stack(
        [(weights(s, z)[:, i, :, None] * s.v(tokens(z))).sum(1) for i in range(TOKENS)], 1
    ),
    key_by_key=key_by_key,
)

KEEP = (torch.arange(TOKENS) % 3 == 0).float()
MASKED = Group("mean of the tokens under a known mask", {"mask": KEEP}).add(
    slice=lambda s, z: tokens(z)[:, ::3].mean(1),
    quotient=lambda s, z: (tokens(z) * s.mask[None, :, None]).sum(1) / s.mask.sum(),
    einsum=lambda s, z: torch.einsum("bnc,n->bc", tokens(z), s.mask) / 6,
    matmul=lambda s, z: s.mask @ tokens(z) / 6,
    matmul_the_other_way=lambda s, z: z.flatten(2) @ s.mask / 6,
    linear=lambda s, z: F.linear(z.flatten(2), s.mask[None])[..., 0] / 6,
    as_image=lambda s, z: (z * s.mask.view(SIDE, SIDE)).sum((2, 3)) / s.mask.sum(),
    as_image_mean=lambda s, z: (z * s.mask.view(SIDE, SIDE)).mean((2, 3)),
    pooled=lambda s, z: F.adaptive_avg_pool2d(z * s.mask.view(SIDE, SIDE), 1).flatten(1),
    pooled_by_windows=lambda s, z: F.avg_pool2d(z * s.mask.view(SIDE, SIDE), SIDE).flatten(1),
    where=lambda s, z: torch.where(s.mask.bool()[:, None], tokens(z), 0.0).sum(1) / 6,
    masked_fill=lambda s, z: tokens(z).masked_fill(s.mask[:, None] == 0, 0).sum(1) / 6,
    index=lambda s, z: tokens(z)[:, torch.arange(0, TOKENS, 3)].mean(1),
)


def then_convolved(name: str, parts: dict[str, Any], **spellings: Any) -> Group:
    """Contractions, each followed by a convolution without an activation in between."""
    torch.manual_seed(9)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    return followed(f"{name}, then a convolution", {**parts, "conv": conv}, convolved, **spellings)


THEN_CONVOLVED = [
    then_convolved(
        "a depth-wise convolution",
        {"kernel": nn.Parameter(torch.randn(CHANNELS, 9, generator=torch.Generator().manual_seed(1)))},
        conv=lambda s, z: tokens(F.conv2d(z, s.kernel.view(CHANNELS, 1, 3, 3), padding=1, groups=CHANNELS)),
        product=lambda s, z: (windows_of_3(z) * s.kernel[..., None]).sum(2).mT,
        einsum=lambda s, z: torch.einsum("bckn,ck->bnc", windows_of_3(z), s.kernel),
    ),
    then_convolved(
        "token mixing",
        {"mixed": nn.Parameter(torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(2)))},
        matmul=lambda s, z: s.mixed @ tokens(z),
        product=lambda s, z: (s.mixed[..., None] * tokens(z)[:, None]).sum(2),
        row_by_row=lambda s, z: torch.stack([(row[:, None] * tokens(z)).sum(1) for row in s.mixed], 1),
    ),
    then_convolved(
        "attention",
        {},
        matmul=lambda s, z: weights(s, z) @ s.v(tokens(z)),
        product=lambda s, z: (weights(s, z)[..., None] * s.v(tokens(z))[:, None]).sum(2),
    ),
]

GROUPS = [POOLING, BROADCAST, MASKED, *THEN_CONVOLVED]
