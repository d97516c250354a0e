"""Spellings of pooling by a softmax over tokens, also one that is written out: Σ x·exp(y) / Σ exp(y)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, Group, tokens

__all__ = ["GROUPS"]


def pooled(
    head: Callable[[Tensor, Tensor], Tensor], score: Callable[[Any, Tensor], Tensor], shift: bool = False
) -> Any:
    """``head(tokens, exponentials of scores)``."""

    def body(s: Any, z: Tensor) -> Tensor:
        y = score(s, tokens(z))
        return head(tokens(z), (y - y.amax(1, keepdim=True) if shift else y).exp())

    return body


def logarithms(log_sum: Callable[[Tensor], Tensor], score: Callable[[Any, Tensor], Tensor]) -> Any:
    """By exp(y - log Σ exp(y)), as a softmax that cannot overflow is written."""

    def body(s: Any, z: Tensor) -> Tensor:
        y = score(s, tokens(z))
        return (tokens(z) * (y - log_sum(y)).exp()).sum(1)

    return body


def spellings(name: str, score: Callable[[Any, Tensor], Tensor], **parts: Any) -> Group:
    return Group(name, {"factor": torch.ones(1), **parts}).add(
        softmax=lambda s, z: (tokens(z) * score(s, tokens(z)).softmax(1)).sum(1),
        softmax_first=lambda s, z: (score(s, tokens(z)).softmax(1) * tokens(z)).sum(1),
        einsum=lambda s, z: torch.einsum("bnc,bnc->bc", tokens(z), score(s, tokens(z)).softmax(1)),
        log_sum_exp=logarithms(lambda y: y.logsumexp(1, keepdim=True), score),
        log_of_sum=logarithms(lambda y: y.exp().sum(1, keepdim=True).log(), score),
        quotient_first=pooled(lambda t, e: (e / e.sum(1, keepdim=True) * t).sum(1), score),
        quotient_shifted=pooled(lambda t, e: (t * (e / e.sum(1, keepdim=True))).sum(1), score, True),
        quotient_of_products=pooled(lambda t, e: (t * e / e.sum(1, keepdim=True)).sum(1), score),
        quotient_of_sums=pooled(lambda t, e: (t * e).sum(1) / e.sum(1), score),
        quotient_of_sums_shifted=pooled(lambda t, e: (e * t).sum(1) / (e.sum(1) + 1e-12), score, True),
        quotient_of_means=pooled(lambda t, e: (t * e).mean(1) / e.mean(1), score),
        quotient_of_einsums=pooled(lambda t, e: torch.einsum("bnc,bnc->bc", e, t) / e.sum(1), score),
        quotient_of_pools=pooled(
            lambda t, e: (F.adaptive_avg_pool1d((t * e).mT, 1) / F.adaptive_avg_pool1d(e.mT, 1)).squeeze(-1), score
        ),
    )


OWN = spellings("soft pooling of all tokens", lambda s, t: t)
SCORED = spellings(
    "pooling by a score for each channel", lambda s, t: s.scores(t), scores=nn.Linear(CHANNELS, CHANNELS)
)


def windows(z: Tensor) -> Tensor:
    """(batch, channels, 4 of a window, windows)."""
    return F.unfold(z, 2, stride=2).unflatten(1, (CHANNELS, 4))


def in_windows(z: Tensor) -> Tensor:
    e = z.exp()
    return tokens(F.avg_pool2d(z * e, 2) / F.avg_pool2d(e, 2))


def in_windows_times_their_size(z: Tensor) -> Tensor:
    e = z.exp()
    return tokens(F.avg_pool2d(e.mul(z), 2).mul_(4).div_(F.avg_pool2d(e, 2).mul_(4)))


def unfolded(z: Tensor) -> Tensor:
    e = windows(z).exp()
    return ((windows(z) * e).sum(2) / e.sum(2)).mT


WINDOWS = Group("soft pooling in windows", {"factor": torch.ones(1)}).add(
    softmax=lambda s, z: (windows(z) * windows(z).softmax(2)).sum(2).mT,
    softmax_of_images=lambda s, z: (lambda w: tokens((w.softmax(-1) * w).sum(-1)))(
        z.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    ),
    pools=lambda s, z: in_windows(z),
    pools_in_place=lambda s, z: in_windows_times_their_size(z),
    unfolded=lambda s, z: unfolded(z),
)


def by_one_weight(z: Tensor) -> Tensor:
    e = z.exp().sum(1, keepdim=True)
    return (F.avg_pool2d(z * e, SIDE) / F.avg_pool2d(e, SIDE)).flatten(1)


ONE_WEIGHT = Group("soft pooling by one weight for all channels", {"factor": torch.ones(1)}).add(
    softmax=lambda s, z: (tokens(z) * tokens(z).logsumexp(-1, keepdim=True).softmax(1)).sum(1),
    pools=lambda s, z: by_one_weight(z),
    sums=lambda s, z: (lambda e: (z * e).sum((2, 3)) / e.sum((2, 3)))(z.exp().sum(1, keepdim=True)),
)

GROUPS = [OWN, SCORED, WINDOWS, ONE_WEIGHT]
