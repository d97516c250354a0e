"""The choice of attention layers: what matches none of them is an error that names those there are."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import pictures, slow_except, vit
from torch import nn

import tlfx
from tlfx.errors import InputError

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            ["blockz.*"],
            r"layers='blockz.\*' matches none of the 2 token-mixing attention layers.*near are .*'blocks.0.attn'",
        ),
        pytest.param(["blocks.0", "block.1"], r"layers='block.1' matches none of the 2 .*'blocks.1.attn'", marks=SLOW),
        pytest.param(["head"], "layers='head' matches none of the 2 ", marks=SLOW),
        ([99], "layers contains 99, but this model has 2 token-mixing attention layers: expected numbers from -2 to 1"),
        pytest.param([0, 2], "layers contains 2, but this model has 2 ", marks=SLOW),
        pytest.param([-3], "layers contains -3, but this model has 2 ", marks=SLOW),
    ],
)
def test_layers_that_match_nothing(layers: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tlfx.align(vit(depth=2), layers=layers, example=pictures())


def test_a_model_without_attention() -> None:
    with pytest.raises(
        InputError, match=r"layers='blocks.0' matches nothing: this model has no token-mixing attention"
    ):
        tlfx.align(nn.Conv2d(3, 4, 4, 4), layers=["blocks.0"], example=pictures())


@pytest.mark.parametrize("layers", slow_except([[-1, 0]], [["blocks.0"], ["blocks.*"], ["*.attn"], [-1, 0], [], None]))
def test_layers_that_match(layers: list[Any] | None) -> None:
    tlfx.align(vit(depth=2), layers=layers, example=pictures())
