"""The label arithmetic of the paper (Xiao et al., ICCV 2023, arXiv 2210.06455), step by step, in float64.

A label here is the share of the first image: (B, H, W) on a grid of tokens, (B, N) in a sequence of tokens.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor


def start(mask: Tensor) -> Tensor:
    """Eq. 5: every pixel begins with its own label, (B, 1, H, W) to (B, H, W)."""
    return mask.double().squeeze(1)


def image_share(mask: Tensor) -> Tensor:
    """Eq. 5: λ, the share of the whole image, the label of tokens that hold none of it, (B,)."""
    return mask.double().mean((1, 2, 3))


def join(tokens: Tensor, mask: Tensor, count: int = 1) -> Tensor:
    """Eq. 5: ``count`` tokens without image content before the sequence, each labelled λ, (B, count + N)."""
    return torch.cat([image_share(mask)[:, None].expand(-1, count), tokens], dim=1)


def residual(skip: Tensor, branch: Tensor) -> Tensor:
    """Eq. 11: Y ← Norm(Y + g(Y)), the average of the two labels."""
    return (skip + branch) / 2


def mix(weights: Tensor, labels: Tensor) -> Tensor:
    """Eq. 9: Y ← W·Y with rows of W that sum to one, (B, M, N) or (M, N) on (B, N)."""
    return (weights @ labels.unsqueeze(-1)).squeeze(-1)


def attention(q: Tensor, k: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """Eq. 7: softmax(q·kᵀ·scale + bias) averaged over heads, from (B, heads, N, d) to (B, N, N)."""
    scores = q.double() @ k.double().transpose(-2, -1) * scale + bias
    return scores.softmax(-1).mean(1)


def absolute_rows(weight: Tensor) -> Tensor:
    """Sec. 3.2: contributions count by absolute value, Norm(|W|)."""
    weight = weight.detach().double().abs()
    return weight / weight.sum(-1, keepdim=True)


def slide(labels: Tensor, kernel: Tensor, stride: Any, padding: Any) -> Tensor:
    """Sec. 3.2: Y_p ← Σ K_q Y_q / Σ K_q over the places q of each window that lie inside the grid."""
    _, height, width = labels.shape
    rows = spans(height, kernel.shape[0], stride[0], padding[0])
    columns = spans(width, kernel.shape[1], stride[1], padding[1])
    out = labels.new_empty(labels.shape[0], len(rows), len(columns))
    for (y, (grid_y, taps_y)), (x, (grid_x, taps_x)) in product(enumerate(rows), enumerate(columns)):
        taps = kernel[taps_y, taps_x]
        out[:, y, x] = (labels[:, grid_y, grid_x] * taps).sum((1, 2)) / taps.sum()
    return out


def spans(extent: int, kernel: int, stride: int, padding: int) -> list[tuple[slice, slice]]:
    """The places of each window on one axis, and the kernel's taps that fall there."""
    places = []
    for first in range(-padding, extent + padding - kernel + 1, stride):
        low, high = max(first, 0), min(first + kernel, extent)
        places.append((slice(low, high), slice(low - first, high - first)))
    return places


def uniform(labels: Tensor, size: Any, stride: Any, padding: Any) -> Tensor:
    """Table 10, spatial aggregation: Y ← Norm(Σ Y) over the valid places of each window."""
    return slide(labels, torch.ones(size, dtype=torch.float64), stride, padding)


def convolution(labels: Tensor, conv: Any) -> Tensor:
    """Table 10: patches that do not overlap are aggregated; any other kernel mixes by |K|, averaged over channels."""
    assert conv.dilation == (1, 1)
    if conv.kernel_size == conv.stride and conv.padding == (0, 0):
        return uniform(labels, conv.kernel_size, conv.stride, conv.padding)
    return slide(labels, conv.weight.detach().double().abs().mean((0, 1)), conv.stride, conv.padding)
