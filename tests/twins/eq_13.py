"""Eq. 13: the "ground-truth" mixing ratio of a token, by its similarity to the tokens of both unmixed images."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def cosine(one: Vector, other: Vector) -> float:
    """zᵀz' / (‖z‖·‖z'‖)."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other)))


def maximum_similarity(mixed: Vector, tokens: Sequence[Vector]) -> float:
    """s(z̃) = max over j of the cosine similarity of z̃ and zⱼ, over all tokens of an image."""
    return max(cosine(mixed, token) for token in tokens)


def mixing_ratio(mixed: Vector, first: Sequence[Vector], second: Sequence[Vector]) -> float:
    """λ = softmax(s₁, s₂), the contribution of the first image."""
    s1, s2 = maximum_similarity(mixed, first), maximum_similarity(mixed, second)
    return math.exp(s1) / (math.exp(s1) + math.exp(s2))
