"""Spellings of products with several factors, which a sum over tokens weights by all of them together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.attention import weights
from equivalents.products import scores
from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, tokens, windows_of_3

__all__ = ["GROUPS"]


def random(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) + 0.2


def halves(product: Tensor, factor: Tensor) -> Tensor:
    """(batch, tokens, channels) times a factor of tokens, in two parts that are joined."""
    return torch.cat([part * f for part, f in zip(product.chunk(2, 1), factor.chunk(2), strict=True)], 1)


def product(s: Any, z: Tensor) -> Tensor:
    return tokens(z) * scores(s, z)


MASK = (torch.arange(TOKENS) % 3 > 0).float()[:, None]
MASKED = Group("a weighted sum under a mask", {"score": nn.Linear(CHANNELS, 1), "factor": MASK}).add(
    weights_first=lambda s, z: ((scores(s, z) * s.factor).mT @ tokens(z))[:, 0],
    einsum=lambda s, z: torch.einsum("bn,n,bnc->bc", scores(s, z)[..., 0], s.factor[:, 0], tokens(z)),
    product=lambda s, z: (product(s, z) * s.factor).sum(1),
    mask_first=lambda s, z: (tokens(z) * s.factor * scores(s, z)).sum(1),
    masked_fill=lambda s, z: product(s, z).masked_fill(s.factor == 0, 0).sum(1),
    where=lambda s, z: torch.where(s.factor > 0, product(s, z), 0.0).sum(1),
    matmul_of_masked=lambda s, z: (scores(s, z).mT @ (tokens(z) * s.factor))[:, 0],
    matmul_of_products=lambda s, z: (s.factor.T @ product(s, z))[:, 0],
)


def both(s: Any, z: Tensor) -> Tensor:
    """Weights (batch, tokens, channels)."""
    return (s.scores(tokens(z)) * 3).softmax(1)


def weighted(s: Any, z: Tensor) -> Tensor:
    return tokens(z) * both(s, z)


PARTS = {"scores": nn.Linear(CHANNELS, CHANNELS), "factor": random(TOKENS, CHANNELS)}
CHANNELWISE = Group("two factors that differ by channel", PARTS).add(
    weights_first=lambda s, z: (tokens(z) * (both(s, z) * s.factor)).sum(1),
    einsum_of_weights=lambda s, z: torch.einsum("bnc,bnc->bc", both(s, z) * s.factor, tokens(z)),
    einsum=lambda s, z: torch.einsum("bnc,nc,bnc->bc", both(s, z), s.factor, tokens(z)),
    einsum_in_another_order=lambda s, z: torch.einsum("nc,bnc,bnc->bc", s.factor, tokens(z), both(s, z)),
    product=lambda s, z: (weighted(s, z) * s.factor).sum(1),
    product_the_other_way=lambda s, z: (both(s, z) * (s.factor * tokens(z))).mean(1),
    quotient=lambda s, z: (weighted(s, z) / (1 / s.factor)).sum(1),
    negated=lambda s, z: (weighted(s, z) * -s.factor).sum(1),
    reshaped=lambda s, z: (weighted(s, z).unflatten(1, (SIDE, SIDE)) * s.factor.unflatten(0, (SIDE, SIDE))).sum((1, 2)),
    transposed=lambda s, z: (weighted(s, z).mT * s.factor.T).sum(2),
    joined=lambda s, z: halves(weighted(s, z), s.factor).sum(1),
    vecdot=lambda s, z: torch.linalg.vecdot(weighted(s, z), s.factor, dim=1),
)


def kernels(s: Any, z: Tensor) -> Tensor:
    """A kernel for each token (batch, 1, 9, tokens)."""
    return s.kernel(tokens(z)).softmax(-1).mT[:, None]


INVOLUTION = Group("two kernels of windows", {"kernel": nn.Linear(CHANNELS, 9), "factor": random(9, 1)}).add(
    kernels_first=lambda s, z: (windows_of_3(z) * (kernels(s, z) * s.factor)).sum(2).mT,
    product=lambda s, z: (windows_of_3(z) * kernels(s, z) * s.factor).sum(2).mT,
    known_first=lambda s, z: (windows_of_3(z) * s.factor * kernels(s, z)).sum(2).mT,
    einsum=lambda s, z: torch.einsum("bckn,bkn,k->bnc", windows_of_3(z), kernels(s, z)[:, 0], s.factor[:, 0]),
    einsum_of_a_product=lambda s, z: torch.einsum("bckn,bkn->bnc", windows_of_3(z) * s.factor, kernels(s, z)[:, 0]),
)
DEPTHWISE = Group("two depthwise kernels", {"kernel": random(CHANNELS, 9), "factor": random(CHANNELS, 9).flip(0)}).add(
    convolution=lambda s, z: tokens(F.conv2d(z, (s.kernel * s.factor).view(-1, 1, 3, 3), padding=1, groups=CHANNELS)),
    product=lambda s, z: (windows_of_3(z) * s.kernel[..., None] * s.factor[..., None]).sum(2).mT,
    einsum=lambda s, z: torch.einsum("bckn,ck,ck->bnc", windows_of_3(z), s.kernel, s.factor),
    einsum_of_a_product=lambda s, z: torch.einsum("bckn,ck->bnc", windows_of_3(z) * s.kernel[..., None], s.factor),
)
ATTENTION = Group("attention times a factor of keys", {"score": nn.Linear(CHANNELS, 1), "factor": random(TOKENS)}).add(
    weights_first=lambda s, z: (weights(s, z) * s.factor) @ s.v(tokens(z)),
    value_first=lambda s, z: weights(s, z) @ (s.v(tokens(z)) * s.factor[:, None]),
    product=lambda s, z: (weights(s, z)[..., None] * s.v(tokens(z))[:, None] * s.factor[:, None]).sum(2),
    einsum=lambda s, z: torch.einsum("bqk,k,bkc->bqc", weights(s, z), s.factor, s.v(tokens(z))),
)


def other(s: Any, z: Tensor) -> Tensor:
    """Content whose labels differ from those of the tokens."""
    return s.q(tokens(z).flip(1))


CONTENTS = Group("a product of two contents, weighted", {"score": nn.Linear(CHANNELS, 1), "factor": torch.ones(1)}).add(
    product_first=lambda s, z: (tokens(z) * other(s, z) * scores(s, z)).sum(1),
    weights_first=lambda s, z: (product(s, z) * other(s, z)).sum(1),
    weights_of_the_other=lambda s, z: (tokens(z) * (other(s, z) * scores(s, z))).sum(1),
    matmul=lambda s, z: (scores(s, z).mT @ (other(s, z) * tokens(z)))[:, 0],
)
OWN = Group("a function of tokens, weighted", {"score": nn.Linear(CHANNELS, 1), "factor": torch.ones(1)}).add(
    function_first=lambda s, z: (F.silu(tokens(z)) * scores(s, z)).sum(1),
    factor_first=lambda s, z: (product(s, z) * tokens(z).sigmoid()).sum(1),
    factor_last=lambda s, z: (tokens(z).sigmoid() * product(s, z)).sum(1),
    factor_of_the_gate=lambda s, z: ((tokens(z).sigmoid() * scores(s, z)) * tokens(z)).sum(1),
    quotient=lambda s, z: (product(s, z) / (1 + tokens(z).neg().exp())).sum(1),
)
LENGTH = Group("tokens of length 1, weighted", {"score": nn.Linear(CHANNELS, 1), "factor": torch.ones(1)}).add(
    length_first=lambda s, z: (F.normalize(tokens(z), dim=-1) * scores(s, z)).sum(1),
    quotient=lambda s, z: (product(s, z) / tokens(z).norm(dim=-1, keepdim=True)).sum(1),
)
FUNCTIONS = Group("two functions of each token", {"factor": torch.ones(1)}).add(
    product=lambda s, z: (s.q(tokens(z)) * s.k(tokens(z))).sum(1),
    product_the_other_way=lambda s, z: (s.k(tokens(z)) * s.q(tokens(z))).sum(1),
    einsum=lambda s, z: torch.einsum("bnc,bnc->bc", s.q(tokens(z)), s.k(tokens(z))),
    einsum_of_a_product=lambda s, z: torch.einsum("bnc,bnc->bnc", s.k(tokens(z)), s.q(tokens(z))).sum(1),
    quotient=lambda s, z: (s.q(tokens(z)) / (1 / s.k(tokens(z)))).sum(1),
    mean=lambda s, z: (s.q(tokens(z)) * s.k(tokens(z))).mean(1),
)

GROUPS = [MASKED, CHANNELWISE, INVOLUTION, DEPTHWISE, ATTENTION, CONTENTS, OWN, LENGTH, FUNCTIONS]
