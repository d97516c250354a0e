"""Functions that apply an operator to each tensor of a list are captured as calls of the operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import pictures
from test_same_model import Net, assert_same_training, target
from torch import Tensor

import tlfx

Body = Callable[[Any, Tensor], Tensor]
Parts = Sequence[Tensor]


def on_halves(function: Callable[[list[Tensor]], Any]) -> Body:
    """A forward that calls a function of the halves of its features, each a tensor of its own."""
    return lambda net, x: torch.cat([*function([part.clone() for part in x.chunk(2, 1)])], 1)


def in_place(parts: list[Tensor]) -> list[Tensor]:
    """Without gradients: torch has no derivatives of most functions that write in place."""
    before = [part.clone() for part in parts]
    with torch.no_grad():
        torch._foreach_mul_(parts, [0.5, 2.0])
        torch._foreach_addcmul_(parts, before[::-1], before, 0.5)
        torch._foreach_copy_(before, parts)
    return before


FUNCTIONS: dict[str, Callable[[list[Tensor]], Any]] = {
    "scalar": lambda parts: torch._foreach_add(torch._foreach_mul(parts, 2.0), 1),
    "scalars": lambda parts: torch._foreach_mul(parts, [2.0, 0.5]),
    "list": lambda parts: torch._foreach_sub(parts, parts[::-1], alpha=0.5),
    "tensor": lambda parts: torch._foreach_mul(parts, torch.tensor(3.0)),
    "of_one": lambda parts: torch._foreach_sigmoid(torch._foreach_neg(parts)),
    "value": lambda parts: torch._foreach_addcdiv(parts, parts[::-1], torch._foreach_exp(parts), 0.1),
    "lerp": lambda parts: torch._foreach_lerp(parts, parts[::-1], 0.3),
    "at_least": lambda parts: torch._foreach_maximum(parts, 0.1),
    "at_most": lambda parts: torch._foreach_minimum(parts, parts[::-1]),
    "scalar_first": lambda parts: torch._foreach_pow(2.0, parts),
    "in_place": in_place,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_and_gradients_are_those_of_the_plain_model(name: str) -> None:
    assert_same_training(on_halves(FUNCTIONS[name]))


def test_a_norm_is_one_over_the_batch() -> None:
    model = tlfx.align(Net(on_halves(lambda parts: torch._foreach_mul(parts, torch._foreach_norm(parts, 2)[0]))))
    with pytest.raises(tlfx.ProvenanceError, match="over several samples of the batch"):
        model(pictures(2), target(2))


def test_labels_are_those_of_the_operators() -> None:
    def one_by_one(parts: list[Tensor]) -> list[Tensor]:
        return [part.cumsum(1) + other for part, other in zip(parts, parts[::-1], strict=True)]

    def at_once(parts: list[Tensor]) -> Any:
        return torch._foreach_add([part.cumsum(1) for part in parts], parts[::-1])

    labels = [tlfx.align(Net(on_halves(f)))(pictures(2), target(2))[1] for f in (one_by_one, at_once)]
    assert torch.equal(*labels)
