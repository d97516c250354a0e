"""Eq. 2: contribution and presence of tokens in one spatial operation ẑ = W·z.

In ẑᵢ = Σⱼ wᵢⱼ·zⱼ the first index is that of the mixed token; in eq. 2 it must be that of the token zᵢ, or else c
would not be the share of zᵢ in ẑⱼ.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]
"""W, a row for each mixed token."""


def contribution(weights: Matrix, token: int, mixed: int) -> float:
    """c(zᵢ, ẑⱼ): the absolute weight of a token in a mixed token, divided by the sum over all tokens."""
    return abs(weights[mixed][token]) / sum(abs(weight) for weight in weights[mixed])


def presence(weights: Matrix) -> list[float]:
    """p(zᵢ) = Σⱼ c(zᵢ, ẑⱼ), for every token."""
    present = [0.0] * len(weights[0])
    for row in weights:
        total = sum(abs(weight) for weight in row)
        for token, weight in enumerate(row):
            present[token] += abs(weight) / total
    return present
