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

GROUPS = [NEIGHBOURS]
