"""Shares by similarity: eq. 13 against its twin, and the ratio of two cosines place by place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from twins.eq_13 import mixing_ratio

from tlfx.analysis.similarity import same_place_share, similarity_share

VECTORS = st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=4)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two vectors, 0 where one is zero, never below 0."""
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return max(0.0, float(a @ b) / norms) if norms > 1e-3 else 0.0


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_equation_13(mixed: int, unmixed: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, mixed, 3, generator=draw)
    first, second = torch.randn(2, 2, unmixed, 3, generator=draw)
    share = similarity_share(tokens, first, second)
    expected = [
        [mixing_ratio(token, one, other) for token in image]
        for image, one, other in zip(tokens.tolist(), first.tolist(), second.tolist(), strict=True)
    ]
    torch.testing.assert_close(share, torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(share + similarity_share(tokens, second, first), torch.ones_like(share))


def test_equation_13_compares_with_all_places() -> None:
    """The token of the mixture is at another place of the first image, where the ratio place by place is blind."""
    a, b, c = torch.eye(3)
    mixed, first, second = torch.stack((a, b)), torch.stack((b, a)), torch.stack((c, c))
    assert similarity_share(mixed, first, second).tolist() == pytest.approx([math.e / (math.e + 1)] * 2)
    assert same_place_share(mixed, first, second).tolist() == [0.5, 0.5]


@given(VECTORS, st.integers(0, 2**31 - 1))
def test_cosines_over_their_sum(mixed: list[tuple[float, float, float]], seed: int) -> None:
    tokens = torch.tensor(mixed).reshape(-1, 1, 3)
    first, second = torch.randn(2, *tokens.shape, generator=torch.Generator().manual_seed(seed))
    shares = same_place_share(tokens, first, second)
    assert shares.shape == tokens.shape[:-1]
    for token, one, other, share in zip(tokens[:, 0], first[:, 0], second[:, 0], shares[:, 0], strict=True):
        s1, s2 = cosine(token, one), cosine(token, other)
        if float(token.norm()) > 1e-2 and s1 + s2 > 1e-2:
            assert abs(float(share) - s1 / (s1 + s2)) < 1e-3
    torch.testing.assert_close(shares + same_place_share(tokens, second, first), torch.ones_like(shares))


def test_the_images_themselves_and_their_opposites() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert float(same_place_share(a, a, b)) == 1.0
    assert float(same_place_share(b, a, b)) == 0.0
    assert float(same_place_share(-a - b, a, b)) == 0.5  # neither is in it: no reason for one or the other
