"""Spellings of padding, of tokens without content, and of writes in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.attention import weights
from equivalents.spelling import CHANNELS, TOKENS, Group, tokens

__all__ = ["GROUPS"]

LONG = TOKENS + 1


def written(make: Callable[[Any, Tensor], Tensor], *writes: Callable[[Any, Tensor, Tensor], Any]) -> Any:
    """A spelling that makes a tensor, writes to it in place, and mixes its tokens by a parameter."""

    def body(s: Any, z: Tensor) -> Tensor:
        made = make(s, z)
        for write in writes:
            write(s, z, made)
        return s.w @ made

    return body


def weighing(write: Callable[[Tensor], Any], make: Callable[[Any, Tensor], Tensor] | None = None) -> Any:
    """A spelling that writes to attention weights in place."""

    def body(s: Any, z: Tensor) -> Tensor:
        weight = (make or weights)(s, z).clone()
        write(weight)
        return weight @ tokens(z)

    return body


def soft_pooled(y: Tensor, total: Tensor) -> Tensor:
    return (y * (y.exp() / total)).sum(1)


def written_between(z: Tensor) -> Tensor:
    """The sum of exponentials is that of the tokens before they were written to."""
    y = tokens(z).clone()
    total = y.exp().sum(1, keepdim=True)
    y[:, 0] += 2.0
    return soft_pooled(y, total)


def exponential_written(z: Tensor) -> Tensor:
    e = tokens(z).exp().clone()
    total = e.sum(1, keepdim=True)
    e[:, 0] += 2.0
    return (tokens(z) * (e / total)).sum(1)


def first_moved(x: Tensor) -> Tensor:
    return torch.cat((x[:, :1] + 2.0, x[:, 1:]), 1)


def empty(s: Any, z: Tensor) -> Tensor:
    return torch.empty(len(z), LONG, CHANNELS)


def zeros(s: Any, z: Tensor) -> Tensor:
    return z.new_zeros(len(z), LONG, CHANNELS)


def doubled(s: Any, z: Tensor) -> Tensor:
    """Tokens behind a copy of the first."""
    return torch.cat((tokens(z)[:, :1], tokens(z)), 1)


def set_last(s: Any, z: Tensor, made: Tensor) -> None:
    made[:, 1:] = tokens(z)


def set_first(s: Any, z: Tensor, made: Tensor) -> None:
    made[:, :1] = s.token


def half_of_keys(weight: Tensor) -> None:
    weight[..., 8:] = 0


PARAMETER = nn.Parameter(torch.randn(LONG, LONG, generator=torch.Generator().manual_seed(5)))
IS_LATER = (torch.arange(LONG) > 0)[:, None]

PADDED = Group("padding among tokens that a parameter mixes", {"w": PARAMETER}).add(
    without=lambda s, z: s.w[:, 1:] @ tokens(z),
    pad=lambda s, z: s.w @ F.pad(tokens(z), (0, 0, 1, 0)),
    pad_and_roll=lambda s, z: s.w @ F.pad(tokens(z), (0, 0, 2, 0)).roll(-1, 1)[:, :LONG],
    cat_zeros=lambda s, z: s.w @ torch.cat((torch.zeros(len(z), 1, CHANNELS), tokens(z)), 1),
    cat_zeros_like=lambda s, z: s.w @ torch.cat((torch.zeros_like(z).flatten(2).mT[:, :1], tokens(z)), 1),
    cat_a_token_times_zero=lambda s, z: s.w @ torch.cat((tokens(z)[:, :1] * 0, tokens(z)), 1),
    times_a_mask=lambda s, z: s.w @ (doubled(s, z) * IS_LATER),
    masked_fill=lambda s, z: s.w @ doubled(s, z).masked_fill(~IS_LATER, 0),
    where_a_number=lambda s, z: s.w @ torch.where(IS_LATER, doubled(s, z), 0.0),
    where_zeros=lambda s, z: s.w @ torch.where(IS_LATER, doubled(s, z), torch.zeros(CHANNELS)),
    index_copy=lambda s, z: s.w @ zeros(s, z).index_copy(1, torch.arange(1, LONG), tokens(z)),
    index_fill=lambda s, z: s.w @ doubled(s, z).index_fill(1, torch.zeros(1, dtype=torch.long), 0),
    scatter=lambda s, z: (
        s.w @ zeros(s, z).scatter(1, torch.arange(1, LONG)[None, :, None].expand(len(z), -1, CHANNELS), tokens(z))
    ),
    slice_scatter=lambda s, z: s.w @ torch.slice_scatter(zeros(s, z), tokens(z), 1, 1),
    slice_is_set=written(zeros, set_last),
    slice_is_copied=written(zeros, lambda s, z, made: made[:, 1:].copy_(tokens(z))),
    slice_is_added=written(zeros, lambda s, z, made: made[:, 1:].add_(tokens(z))),
    indices_are_set=written(
        zeros, lambda s, z, made: made.__setitem__((slice(None), torch.arange(1, LONG)), tokens(z))
    ),
    first_is_set_to_zero=written(doubled, lambda s, z, made: made[:, 0].zero_()),
    first_is_filled=written(doubled, lambda s, z, made: made.select(1, 0).fill_(0)),
    first_is_multiplied=written(doubled, lambda s, z, made: made[:, :1].mul_(0)),
)

TOKEN = Group("a learned token", {"w": PARAMETER, "token": nn.Parameter(torch.zeros(1, 1, CHANNELS))}).add(
    cat=lambda s, z: s.w @ torch.cat((s.token.expand(len(z), -1, -1), tokens(z)), 1),
    cat_repeated=lambda s, z: s.w @ torch.cat((s.token.repeat(len(z), 1, 1), tokens(z)), 1),
    cat_after_padding=lambda s, z: (
        s.w @ torch.cat((s.token.expand(len(z), -1, -1), F.pad(tokens(z), (0, 0, 1, 0))[:, 1:]), 1)
    ),
    where=lambda s, z: s.w @ torch.where(IS_LATER, doubled(s, z), s.token),
    where_the_other_way=lambda s, z: s.w @ torch.where(~IS_LATER, s.token.expand(len(z), LONG, -1), doubled(s, z)),
    first_is_set=written(empty, set_first, set_last),
    first_is_set_later=written(empty, set_last, set_first),
    first_is_set_among_zeros=written(zeros, set_last, set_first),
    first_is_selected=written(doubled, lambda s, z, made: made.__setitem__((slice(None), 0), s.token[0, 0])),
    first_is_indexed=written(
        doubled, lambda s, z, made: made.__setitem__((slice(None), torch.tensor([0])), s.token.expand(len(z), -1, -1))
    ),
    first_by_a_mask=written(
        doubled, lambda s, z, made: made.__setitem__((slice(None), ~IS_LATER[:, 0]), s.token.expand(len(z), -1, -1))
    ),
    slice_scatter=lambda s, z: s.w @ torch.slice_scatter(doubled(s, z), s.token.expand(len(z), -1, -1), 1, 0, 1),
    index_copy=lambda s, z: (
        s.w @ doubled(s, z).index_copy(1, torch.zeros(1, dtype=torch.long), s.token.expand(len(z), -1, -1))
    ),
)

HALF = torch.arange(TOKENS) < 8
KEYS = Group("attention to half of the keys").add(
    times_a_mask=lambda s, z: (weights(s, z) * HALF) @ tokens(z),
    sliced=lambda s, z: weights(s, z)[..., :8] @ tokens(z)[:, :8],
    masked_fill=lambda s, z: weights(s, z).masked_fill(~HALF, 0) @ tokens(z),
    where=lambda s, z: torch.where(HALF, weights(s, z), 0.0) @ tokens(z),
    pad=lambda s, z: F.pad(weights(s, z)[..., :8], (0, 8)) @ tokens(z),
    cat=lambda s, z: torch.cat((weights(s, z)[..., :8], torch.zeros(len(z), TOKENS, 8)), -1) @ tokens(z),
    slice_scatter=lambda s, z: torch.slice_scatter(weights(s, z), torch.zeros(len(z), TOKENS, 8), 2, 8) @ tokens(z),
    set_to_zero=weighing(half_of_keys),
    zeroed=weighing(lambda weight: weight[:, :, 8:].zero_()),
    multiplied=weighing(lambda weight: weight.narrow(2, 8, 8).mul_(0)),
    filled=weighing(lambda weight: weight.masked_fill_(~HALF, 0)),
    index_filled=weighing(lambda weight: weight.index_fill_(2, torch.arange(8, 16), 0)),
    index_set=weighing(lambda weight: weight.__setitem__((..., torch.arange(8, 16)), 0)),
    written_into_zeros=weighing(
        lambda weight: None,
        lambda s, z: torch.slice_scatter(torch.zeros(len(z), TOKENS, TOKENS), weights(s, z)[..., :8], 2, 0, 8),
    ),
)


def best(s: Any, z: Tensor) -> Tensor:
    """The four keys that the first query attends to most, without the first."""
    return weights(s, z)[:, 0, 1:].topk(4, 1)[1] + 1


def gathered(z: Tensor, index: Tensor) -> Tensor:
    return tokens(z).gather(1, index[..., None].expand(-1, -1, CHANNELS))


def buffered(write: Callable[[Tensor, Tensor], Any]) -> Any:
    """A spelling that writes indices into a buffer, behind a first of 0."""

    def body(s: Any, z: Tensor) -> Tensor:
        index = torch.zeros(len(z), 5, dtype=torch.long)
        write(index, best(s, z))
        return gathered(z, index)[:, 1:]

    return body


def sample_column(z: Tensor) -> Tensor:
    """Indices of the samples of a batch, (batch, 1)."""
    return torch.arange(len(z))[:, None]


def gated(s: Any, z: Tensor) -> Tensor:
    return tokens(z) * s.factor


def behind(s: Any, z: Tensor) -> Tensor:
    """A learned token and products of tokens with a factor, in a buffer."""
    made = empty(s, z)
    set_first(s, z, made)
    made[:, 1:] = gated(s, z)
    return made


def changed(change: Callable[[Any, Tensor], Any]) -> Any:
    """A spelling that changes a copy of the tokens in place, and sums them behind a learned token."""

    def body(s: Any, z: Tensor) -> Tensor:
        copy = tokens(z).clone()
        change(s, copy)
        return torch.cat((s.token.expand(len(z), -1, -1), copy), 1).sum(1)

    return body


FACTOR = torch.rand(TOKENS, 1, generator=torch.Generator().manual_seed(3)) + 0.2
PRODUCTS = Group(
    "a sum of products that are written", {"factor": FACTOR, "token": nn.Parameter(torch.ones(1, 1, CHANNELS))}
).add(
    cat=lambda s, z: torch.cat((s.token.expand(len(z), -1, -1), gated(s, z)), 1).sum(1),
    cat_with_an_empty_tensor=lambda s, z: torch.cat(
        (tokens(z)[:, :0], s.token.expand(len(z), -1, -1), gated(s, z), z.new_empty(0)), 1
    ).sum(1),
    set_in_a_buffer=lambda s, z: behind(s, z).sum(1),
    first_is_set_last=lambda s, z: torch.slice_scatter(
        F.pad(gated(s, z), (0, 0, 1, 0)), s.token.expand(len(z), -1, -1), 1, 0, 1
    ).sum(1),
    slice_scatter=lambda s, z: torch.slice_scatter(s.token.repeat(len(z), LONG, 1), gated(s, z), 1, 1).sum(1),
    index_copy=lambda s, z: s.token.repeat(len(z), LONG, 1).index_copy(1, torch.arange(1, LONG), gated(s, z)).sum(1),
    index_put=lambda s, z: (
        s.token.repeat(len(z), LONG, 1).index_put((sample_column(z), torch.arange(1, LONG)), gated(s, z)).sum(1)
    ),
    half_of_the_products=changed(lambda s, copy: (copy[:, :8].mul_(s.factor[:8]), copy[:, 8:].mul_(s.factor[8:]))),
    products_in_place=changed(lambda s, copy: copy.mul_(s.factor)),
    products_through_a_view=changed(lambda s, copy: copy.unflatten(1, (4, 4)).mul_(s.factor.view(4, 4, 1))),
    products_copied=changed(lambda s, copy: copy.copy_(copy * s.factor)),
)

INDICES = Group("indices that the image decides").add(
    as_they_are=lambda s, z: gathered(z, best(s, z)),
    cat=lambda s, z: gathered(z, torch.cat((torch.zeros(len(z), 1, dtype=torch.long), best(s, z)), 1))[:, 1:],
    pad=lambda s, z: gathered(z, F.pad(best(s, z), (1, 0)))[:, 1:],
    set=buffered(lambda index, shifted: index.__setitem__((slice(None), slice(1, None)), shifted)),
    copied=buffered(lambda index, shifted: index[:, 1:].copy_(shifted)),
    added=buffered(lambda index, shifted: index.narrow(1, 1, 4).add_(shifted)),
    set_through_a_view=buffered(lambda index, shifted: index.view(-1, 5)[:, 1:].__setitem__(..., shifted)),
    take_along_dim=lambda s, z: torch.take_along_dim(tokens(z), best(s, z)[..., None], 1),
)

BETWEEN = Group("a token that is written to after its sum was taken").add(
    copied=lambda s, z: soft_pooled(first_moved(tokens(z)), tokens(z).exp().sum(1, keepdim=True)),
    written=lambda s, z: written_between(z),
)
EXPONENTIAL = Group("an exponential that is written to after its sum was taken").add(
    copied=lambda s, z: (lambda e: (tokens(z) * (first_moved(e) / e.sum(1, keepdim=True))).sum(1))(tokens(z).exp()),
    written=lambda s, z: exponential_written(z),
)


def shown(s: Any, z: Tensor) -> Tensor:
    """The tokens that the image keeps, bool (batch, tokens, 1)."""
    return s.score(tokens(z)) > 0


CHOSEN = Group("tokens that the image keeps", {"score": nn.Linear(CHANNELS, 1)}).add(
    product=lambda s, z: (tokens(z) * shown(s, z).float()).sum(1),
    product_with_a_mask=lambda s, z: (tokens(z) * shown(s, z)).sum(1),
    masked_fill=lambda s, z: tokens(z).masked_fill(~shown(s, z), 0.0).sum(1),
    masked_fill_in_place=lambda s, z: tokens(z).clone().masked_fill_(~shown(s, z), 0.0).sum(1),
    where=lambda s, z: torch.where(shown(s, z), tokens(z), 0.0).sum(1),
    where_the_other_way=lambda s, z: torch.where(~shown(s, z), 0.0, tokens(z)).sum(1),
    where_zeros=lambda s, z: torch.where(shown(s, z), tokens(z), torch.zeros_like(tokens(z))).sum(1),
    matmul=lambda s, z: (shown(s, z).float().mT @ tokens(z))[:, 0],
)

GROUPS = [CHOSEN, PADDED, TOKEN, KEYS, PRODUCTS, INDICES, BETWEEN, EXPONENTIAL]
