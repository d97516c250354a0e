"""Eq. 10: a transformer block, spatial mixing and MLP, each after a layer norm and added to its input."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""
EPS = 1e-6


def layer_norm(tokens: Tensor, norm: Layer, eps: float = EPS) -> Tensor:
    """LN, token by token."""
    done = []
    for token in tokens:
        mean = sum(token.tolist()) / len(token)
        variance = sum((x - mean) ** 2 for x in token.tolist()) / len(token)
        done.append((token - mean) / math.sqrt(variance + eps) * norm[0] + norm[1])
    return torch.stack(done)


def mlp(tokens: Tensor, first: Layer, second: Layer) -> Tensor:
    """Two linear layers with a GELU between them, token by token."""
    done = []
    for token in tokens:
        hidden = first[0] @ token + first[1]
        active = torch.tensor([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in hidden.tolist()]).to(token)
        done.append(second[0] @ active + second[1])
    return torch.stack(done)


def block(
    tokens: Tensor,
    norms: tuple[Layer, Layer],
    mixing: Callable[[Tensor], Tensor],
    layers: tuple[Layer, Layer],
    eps: float,
) -> Tensor:
    """Z' = mixing(LN(Z)) + Z, then MLP(LN(Z')) + Z'; ``mixing`` is MSA in a transformer."""
    between = mixing(layer_norm(tokens, norms[0], eps)) + tokens
    return mlp(layer_norm(between, norms[1], eps), *layers) + between
