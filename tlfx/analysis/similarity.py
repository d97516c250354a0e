"""Share of two images in the tokens of their mixture, by cosine similarity: that of eq. 13, and one place by place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

__all__ = ["same_place_share", "similarity_share"]


def similarity_share(mixed: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Share of the first image in tokens of a mixed image by eq. 13, the paper's "ground truth": float32 (…, tokens).

    s₁ and s₂ are the maximum cosine similarity of a token of the mixed image to all tokens of the first and of the
    second image; λ = softmax(s₁, s₂). Since a cosine is between -1 and 1, λ is between 0.12 and 0.88.

    Args:
        mixed: floating (…, tokens, channels), some or all tokens of one layer of a model, for the mixed image.
        first: floating (…, tokens, channels), all tokens of this layer for the first image.
        second: floating (…, tokens, channels), all tokens of this layer for the second image.

    >>> first, second = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> similarity_share(torch.tensor([[-3.0, 0.0], [1.0, 1.0]]), first, second)
    tensor([0.7311, 0.5000])
    """
    one, other = (_cosines(mixed, x).amax(-1) for x in (first, second))
    return torch.stack((one, other)).softmax(0)[0]


def _cosines(mixed: Tensor, tokens: Tensor) -> Tensor:
    """Cosine similarity of each mixed token to each of the other tokens, (…, mixed tokens, tokens)."""
    return normalize(mixed.float(), dim=-1) @ normalize(tokens.float(), dim=-1).mT


def same_place_share(mixed: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Share of the first image in tokens of a mixed image by similarity to the same token only: float32 (…) in [0, 1].

    This measure is not the paper's, which is :func:`similarity_share`. s₁ and s₂ are the cosine similarity of a token
    to the token at the same place of the first and of the second image, and λ = s₁ / (s₁ + s₂), which uses the whole
    range from 0 to 1. Negative similarities count as 0; if both are 0, λ = ½.

    Args:
        mixed: floating (…, channels), tokens of one layer of one model for the mixed image.
        first: floating (…, channels), the same tokens for the first image.
        second: floating (…, channels), the same tokens for the second image.

    >>> same_place_share(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(0.7500)
    """
    one, other = (cosine_similarity(mixed.float(), x.float(), dim=-1).clamp_min(0) for x in (first, second))
    total = one + other
    return torch.where(total > 0, one / total.where(total > 0, 1), 0.5)
