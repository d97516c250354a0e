"""Spellings of differences: of tokens, which are summands, and of a value and its own mean, which is a statistic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.keys import weights
from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, followed, tokens, windows_of_3

__all__ = ["GROUPS"]

HALF = TOKENS // 2
KERNEL = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) / 2
LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def depthwise(kernel: Tensor, stride: int = 1) -> Any:
    window = kernel.expand(CHANNELS, 1, -1, -1)
    return lambda s, z: tokens(F.conv2d(z, window.to(z), stride=stride, groups=CHANNELS))


def of_quarters(combine: Any) -> Any:
    """Tokens of the four places in windows of 2 × 2."""
    return lambda s, z: tokens(combine(*(z[:, :, i::2, j::2] / 2 for j in (0, 1) for i in (0, 1))))


WAVELET = Group("a band of a wavelet transform").add(
    conv=depthwise(KERNEL, 2),
    slices=of_quarters(lambda a, b, c, d: -a + b - c + d),
    pairs=of_quarters(lambda a, b, c, d: (b - a) + (d - c)),
    sums=of_quarters(lambda a, b, c, d: (b + d) - (a + c)),
)


def of_neighbours(combine: Any) -> Any:
    """Tokens that are not at an edge, and those above, below, left and right of them."""
    shifts = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    ends = [[slice(1 + d, SIDE - 1 + d) for d in shift] for shift in shifts]
    return lambda s, z: tokens(combine(*(z[:, :, rows, columns] for rows, columns in ends)))


CURVATURE = Group("a discrete Laplace operator").add(
    conv=depthwise(LAPLACE),
    centre_last=of_neighbours(lambda centre, a, b, c, d: a + b + c + d - 4 * centre),
    centre_first=of_neighbours(lambda centre, a, b, c, d: -4 * centre + a + b + c + d),
)


def of_three(matrix: list[float]) -> Any:
    return lambda s, z: (torch.tensor([matrix]).to(z) @ tokens(z)[:, :3])[:, 0]


THREE = Group("the sum of two tokens less another").add(
    matmul=of_three([1.0, 1.0, -1.0]),
    last=lambda s, z: tokens(z)[:, 0] + tokens(z)[:, 1] - tokens(z)[:, 2],
    between=lambda s, z: tokens(z)[:, 0] - tokens(z)[:, 2] + tokens(z)[:, 1],
)
OF_OTHERS = torch.cat([torch.eye(HALF), torch.full((HALF, HALF), -1 / HALF)], 1)
OTHERS = Group("tokens less the mean of other tokens").add(
    matmul=lambda s, z: OF_OTHERS.to(z) @ tokens(z),
    minus=lambda s, z: tokens(z)[:, :HALF] - tokens(z)[:, HALF:].mean(1, keepdim=True),
    plus=lambda s, z: tokens(z)[:, :HALF] + (-tokens(z)[:, HALF:]).mean(1, keepdim=True),
)
ONE = torch.cat([torch.ones(1, 1), torch.full((1, TOKENS - 1), -1 / (TOKENS - 1))], 1)
REST = Group("a token less the mean of the rest").add(
    matmul=lambda s, z: (ONE.to(z) @ tokens(z))[:, 0],
    minus=lambda s, z: tokens(z)[:, 0] - tokens(z)[:, 1:].mean(1),
    keepdim=lambda s, z: (tokens(z)[:, :1] - tokens(z)[:, 1:].mean(1, keepdim=True))[:, 0],
)


def centred(x: Tensor) -> Tensor:
    """Instance norm over tokens (batch, tokens, channels), written out."""
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()


def mixed(s: Any) -> Tensor:
    rows: Tensor = s.mixed.softmax(-1)
    return rows


def normed(name: str, **spellings: Any) -> Group:
    torch.manual_seed(7)
    parts = {
        "mixed": nn.Parameter(torch.randn(5, TOKENS)),
        "kernel": nn.Parameter(torch.randn(CHANNELS, 9)),
        "kernels": nn.Conv2d(CHANNELS, 9, 1),
    }
    return followed(f"{name}, then a norm that is written out", parts, lambda s, x: centred(x), **spellings)


NORMED = [
    normed(
        "token mixing",
        matmul=lambda s, z: mixed(s) @ tokens(z),
        product=lambda s, z: (mixed(s)[..., None] * tokens(z)[:, None]).sum(2),
    ),
    normed(
        "a depth-wise convolution",
        conv=lambda s, z: tokens(F.conv2d(z, s.kernel.view(CHANNELS, 1, 3, 3), padding=1, groups=CHANNELS)),
        product=lambda s, z: (windows_of_3(z) * s.kernel[..., None]).sum(2).mT,
    ),
    normed(
        "involution",
        einsum=lambda s, z: torch.einsum("bckn,bkn->bnc", windows_of_3(z), s.kernels(z).flatten(2)),
        product=lambda s, z: (windows_of_3(z) * s.kernels(z).flatten(2)[:, None]).sum(2).mT,
    ),
    normed(
        "attention",
        matmul=lambda s, z: weights(s, z) @ tokens(z),
        product=lambda s, z: (weights(s, z)[..., None] * tokens(z)[:, None]).sum(2),
    ),
]

GROUPS = [WAVELET, CURVATURE, THREE, OTHERS, REST, *NORMED]
