"""Share of two images in the tokens of their mixture, by cosine similarity (eq. 13)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

__all__ = ["similarity_share"]


def similarity_share(mixed: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Share of the first image in tokens of a mixed image, by cosine similarity: float32 (…) in [0, 1].

    This is our interpretation of the similarity that the paper uses as ground truth (eq. 13). Let s₁ and s₂ be the
    cosine similarity of a token of the mixed image to the same token of the first and of the second image; then
    λ = s₁ / (s₁ + s₂). Negative similarities count as 0; if both are 0, λ = ½. Tokens that are similar for all images,
    such as those of an untrained model, give λ near ½.

    Args:
        mixed, first, second: floating (…, channels), tokens of one layer of one model.

    >>> similarity_share(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(0.7500)
    """
    one, other = (cosine_similarity(mixed.float(), x.float(), dim=-1).clamp_min(0) for x in (first, second))
    total = one + other
    return torch.where(total > 0, one / total.where(total > 0, 1), 0.5)
