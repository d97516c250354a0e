"""Similarities and distances: content of one token, mixing weights between two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from rule_harness import check, label_rows, tokens
from torch import Tensor, nn

from tlfx import Operation

SIZE = (4, 3, 4)

OF_ONE_TOKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "vecdot": lambda x: torch.linalg.vecdot(tokens(x), tokens(x).tanh()),
    "vecdot_along_another_axis": lambda x: torch.linalg.vecdot(x.flatten(2), x.flatten(2).tanh(), dim=1),
    "cosine_similarity": lambda x: F.cosine_similarity(tokens(x), tokens(x).tanh(), dim=-1),
    "cosine_similarity_of_maps": lambda x: F.cosine_similarity(x, x.tanh()).flatten(1),
    "pairwise_distance": lambda x: F.pairwise_distance(tokens(x), tokens(x).tanh()),
    "vecdot_with_a_constant": lambda x: torch.linalg.vecdot(tokens(x), torch.arange(4.0)),
}


@pytest.mark.parametrize("name", slow_except(OF_ONE_TOKEN.keys() - {"vecdot", "cosine_similarity"}, OF_ONE_TOKEN))
def test_of_one_token(name: str) -> None:
    """Channels contracted: Y ← Y."""
    check(OF_ONE_TOKEN[name], lambda y, x: label_rows(y), SIZE)


def cosine(x: Tensor) -> Tensor:
    return F.cosine_similarity(tokens(x).unsqueeze(2), tokens(x).unsqueeze(1), dim=-1)


def distance(x: Tensor) -> Tensor:
    return -torch.cdist(tokens(x), tokens(x))


def dot(x: Tensor) -> Tensor:
    return torch.linalg.vecdot(tokens(x).unsqueeze(2), tokens(x).unsqueeze(1))


@pytest.mark.parametrize("score", [cosine, distance, dot])
def test_attention_by_similarity(score: Callable[[Tensor], Tensor]) -> None:
    """Eq. 9 with W = softmax of any similarity of two tokens."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return (score(x).softmax(-1) @ label_rows(y).unsqueeze(-1)).expand(-1, -1, 4)

    check(lambda x: score(x).softmax(-1) @ tokens(x), twin, SIZE, {"matmul": Operation.SPATIAL_MIX})


def test_distance_to_prototypes() -> None:
    """Learned prototypes are channels of every token."""
    check(
        lambda x, w: torch.cdist(tokens(x), w),
        lambda y, x: label_rows(y).unsqueeze(-1).expand(-1, -1, 5),
        SIZE,
        {"cdist": Operation.CHANNEL_MIX},
        w=nn.Parameter(torch.randn(5, 4)),
    )


def test_distance_of_different_tokens() -> None:
    """The label of a difference is the average of both."""
    check(
        lambda x: F.pairwise_distance(tokens(x), tokens(x).flip(1)),
        lambda y, x: (label_rows(y) + label_rows(y).flip(1)) / 2,
        SIZE,
        {"pairwise_distance": Operation.RESIDUAL},
    )
