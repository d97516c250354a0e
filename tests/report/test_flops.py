"""FLOPs of single operators against counts by hand: two for every multiplication with its addition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from equivalents.spelling import tokens
from torch import Tensor, nn

from tlfx.report import inspect

TOKENS = 4 * 4


class Calls(nn.Module):
    """A function of images and a learned tensor."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("function", "shape", "count"),
    [
        (lambda x, w: F.linear(tokens(x), w), (5, 3), 2 * TOKENS * 3 * 5),
        (lambda x, w: tokens(x) @ w, (3,), 2 * TOKENS * 3),
        (lambda x, w: F.conv2d(x, w, groups=3, padding=1), (6, 1, 3, 3), 2 * TOKENS * 6 * 9),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), (3, 5, 2, 2), 2 * TOKENS * 3 * 5 * 4),
        (lambda x, w: torch.einsum("bchw,cd->bdhw", x, w), (3, 5), 2 * TOKENS * 3 * 5),
        (lambda x, w: torch.einsum("bchw,c->bchw", x, w), (3,), 0),  # element-wise: counted no more than x * w is
        (lambda x, w: x * w, (4, 4), 0),
        # 2 query heads, 1 key head, 16 tokens, 3 channels: q·kᵀ and weights·v for each query head
        (
            lambda x, w: F.scaled_dot_product_attention(
                tokens(x)[:, None] * w, tokens(x)[:, None], tokens(x)[:, None], enable_gqa=True
            ),
            (2, 1, 1),
            2 * (2 * 2 * TOKENS * TOKENS * 3),
        ),
    ],
)
def test_flops_of_an_operator(function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], count: int) -> None:
    assert inspect(Calls(function, shape), input_size=(3, 4, 4)).flops == count
