"""Spellings of tokens that are read at indices which the image decides: graphs of nearest tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from equivalents.spelling import CHANNELS, TOKENS, Body, Group, tokens

__all__ = ["GROUPS", "flat_neighbours"]

COUNT = 3


def nearest(t: Tensor) -> Tensor:
    """Indices (batch, tokens, COUNT) of the tokens most like each."""
    return (t @ t.mT).topk(COUNT, -1)[1]


def start(t: Tensor) -> Tensor:
    """The place (batch, 1, 1) of the first token of each sample among those of all."""
    return torch.arange(len(t)).view(-1, 1, 1) * TOKENS


def samples(t: Tensor) -> Tensor:
    return torch.arange(len(t)).view(-1, 1)


def flat_neighbours(index: Any) -> Body:
    """The mean of tokens read from those of all samples, at the indices ``index(tokens)``."""

    def body(s: Any, z: Tensor) -> Tensor:
        t = tokens(z)
        return t.flatten(0, 1)[index(t)].mean(2)

    return body


def of_all(read: Any) -> Body:
    """The mean of ``read(tokens of all samples, indices)``, (all tokens, COUNT, channels)."""

    def body(s: Any, z: Tensor) -> Tensor:
        t = tokens(z)
        return read(t.flatten(0, 1), (nearest(t) + start(t)).flatten(0, 1)).mean(1).view_as(t)

    return body


def gathered(s: Any, z: Tensor) -> Tensor:
    t = tokens(z)
    index = nearest(t).unsqueeze(-1).expand(-1, -1, -1, CHANNELS)
    return t.unsqueeze(1).expand(-1, TOKENS, -1, -1).gather(2, index).mean(2)


def channels_first(s: Any, z: Tensor) -> Tensor:
    t = tokens(z)
    read = t.permute(2, 0, 1).flatten(1)[:, (nearest(t) + start(t)).flatten()]
    return read.view(CHANNELS, len(t), TOKENS, COUNT).mean(3).permute(1, 2, 0)


NEIGHBOURS = Group("mean of the nearest tokens").add(
    gathered=gathered,
    sample_index=lambda s, z: tokens(z)[torch.arange(len(z)).view(-1, 1, 1), nearest(tokens(z))].mean(2),
    flat=flat_neighbours(lambda t: nearest(t) + start(t)),
    start_first=flat_neighbours(lambda t: start(t) + nearest(t)),
    added_in_place=flat_neighbours(lambda t: nearest(t).add_(start(t))),
    sorted=flat_neighbours(lambda t: (t @ t.mT).argsort(-1, descending=True)[..., :COUNT] + start(t)),
    joined=flat_neighbours(lambda t: torch.stack([nearest(t)[..., k] + start(t)[..., 0] for k in range(COUNT)], -1)),
    selected=of_all(lambda x, i: x.index_select(0, i.flatten()).unflatten(0, i.shape)),
    gathered_flat=of_all(lambda x, i: x.gather(0, i.reshape(-1, 1).expand(-1, CHANNELS)).unflatten(0, i.shape)),
    taken=of_all(lambda x, i: x.take(i[..., None] * CHANNELS + torch.arange(CHANNELS))),
    embedding=of_all(lambda x, i: F.embedding(i, x)),
    channels_first=channels_first,
)


def targets(t: Tensor) -> Tensor:
    """The place (batch, tokens) that each token goes to."""
    return (t @ t.mT).argmin(-1)


def flat(index: Tensor) -> Tensor:
    """Indices (batch, count) among the tokens of all samples, (batch · count)."""
    return (index + start(index)[..., 0]).flatten()


def by_channel(index: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, CHANNELS)


def written(index: Any, write: Any) -> Body:
    """``write(zeros, index, tokens)``, (batch, tokens, channels)."""

    def body(s: Any, z: Tensor) -> Tensor:
        t = tokens(z)
        return write(torch.zeros_like(t), index(t), t)

    return body


def written_flat(index: Any, write: Any) -> Body:
    """The same among the tokens of all samples, (batch · tokens, channels)."""
    return written(index, lambda x, i, t: write(x.flatten(0, 1), flat(i), t.flatten(0, 1)).view_as(t))


ADDED = Group("tokens added at places that the image decides").add(
    scatter_add=written(targets, lambda x, i, t: x.scatter_add(1, by_channel(i), t)),
    index_put=written(targets, lambda x, i, t: x.index_put((samples(t), i), t, accumulate=True)),
    flat_index_add=written_flat(targets, lambda x, i, t: x.index_add(0, i, t)),
    flat_index_add_in_place=written_flat(targets, lambda x, i, t: x.index_add_(0, i, t)),
    flat_scatter_add=written_flat(targets, lambda x, i, t: x.scatter_add(0, by_channel(i), t)),
    flat_scatter_reduce=written_flat(targets, lambda x, i, t: x.scatter_reduce(0, by_channel(i), t, "sum")),
    flat_index_put=written_flat(targets, lambda x, i, t: x.index_put((i,), t, accumulate=True)),
    flat_elements=written_flat(
        targets, lambda x, i, t: x.put(i[:, None] * CHANNELS + torch.arange(CHANNELS), t, accumulate=True)
    ),
    channels_first=written_flat(targets, lambda x, i, t: x.mT.index_add(1, i, t.mT).mT),
)


def order(t: Tensor) -> Tensor:
    return t.sum(-1).argsort(1)


SORTED = Group("tokens put in an order").add(
    scatter=written(order, lambda x, i, t: x.scatter(1, by_channel(i), t)),
    gather=written(order, lambda x, i, t: t.gather(1, by_channel(i.argsort(1)))),
    index_put=written(order, lambda x, i, t: x.index_put((samples(t), i), t)),
    flat_index_copy=written_flat(order, lambda x, i, t: x.index_copy(0, i, t)),
    flat_scatter=written_flat(order, lambda x, i, t: x.scatter(0, by_channel(i), t)),
    flat_index_put=written_flat(order, lambda x, i, t: x.index_put((i,), t)),
)


def first(t: Tensor) -> Tensor:
    """Five indices (batch, 5) of tokens."""
    return order(t)[:, :5]


def arithmetic(change: Any) -> Body:
    """Tokens of all samples at indices that arithmetic changes on the way."""
    return written(first, lambda x, i, t: t.flatten(0, 1)[flat(change(i))].view(*i.shape, CHANNELS))


COARSE = Group("indices divided by two").add(
    gather=written(first, lambda x, i, t: t.gather(1, by_channel(i // 2))),
    floor_division=arithmetic(lambda i: i // 2),
    truncated=arithmetic(lambda i: torch.div(i, 2, rounding_mode="trunc")),
    floor=arithmetic(lambda i: (i / 2).floor().long()),
    shift=arithmetic(lambda i: i >> 1),
    remainder=arithmetic(lambda i: (i // 2) % TOKENS),
    fmod=arithmetic(lambda i: torch.fmod(i // 2, TOKENS)),
    clamp=arithmetic(lambda i: (i // 2).clamp(0, TOKENS - 1)),
    minimum=arithmetic(lambda i: torch.minimum(i // 2, torch.tensor(TOKENS - 1))),
    rows_and_columns=arithmetic(lambda i: i // 2 // 4 * 4 + i // 2 % 4),
    int32=arithmetic(lambda i: (i // 2).int()),
)


def edges(z: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and targets of the edges of a graph for each sample, among the tokens of all."""
    near = nearest(tokens(z))
    ends = torch.arange(TOKENS).view(1, -1, 1).expand_as(near)
    return (near + start(near)).flatten(), (ends + start(near)).flatten()


def messages(reduce: Any) -> Body:
    """``reduce(zeros, targets, messages)`` over all edges."""

    def body(s: Any, z: Tensor) -> Tensor:
        t, (sources, ends) = tokens(z), edges(z)
        return reduce(torch.zeros_like(t).flatten(0, 1), ends, t.flatten(0, 1)[sources]).view_as(t)

    return body


GRAPH = Group("messages along the edges of a graph").add(
    mean=flat_neighbours(lambda t: nearest(t) + start(t)),
    index_add=messages(lambda x, ends, m: x.index_add(0, ends, m) / COUNT),
    scatter_add=messages(lambda x, ends, m: x.scatter_add(0, by_channel(ends), m) / COUNT),
    scatter_mean=messages(lambda x, ends, m: x.scatter_reduce(0, by_channel(ends), m, "mean", include_self=False)),
)

GROUPS = [NEIGHBOURS, ADDED, SORTED, COARSE, GRAPH]
