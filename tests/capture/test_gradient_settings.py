"""Forwards that branch on what requires gradients are captured again where that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import pictures, slow_except
from test_same_model import Net, target
from torch import Tensor, nn

import tlfx
from tlfx.aligned import planner_of

Body = Callable[[Any, Tensor], Tensor]


def by_parameter(net: Any, x: Tensor) -> Tensor:
    return x * 3 if net.mix.weight.requires_grad else x * 2


def by_any(net: Any, x: Tensor) -> Tensor:
    return x * 3 if any(p.requires_grad for p in net.parameters()) else x * 2


def by_count(net: Any, x: Tensor) -> Tensor:
    return x * (1 + sum(p.requires_grad for p in net.parameters()))


def by_value(net: Any, x: Tensor) -> Tensor:
    return x * 3 if net.mix(x.mT).requires_grad else x * 2


def by_leaf(net: Any, x: Tensor) -> Tensor:
    return x * 3 if x.is_leaf else x * 2


def by_node(net: Any, x: Tensor) -> Tensor:
    return x * 3 if x.grad_fn is None else x * 2


def by_getattr(net: Any, x: Tensor) -> Tensor:
    return x * 3 if getattr(net.mix.bias, "requires_grad") else x * 2  # noqa: B009


BODIES = [by_parameter, by_any, by_count, by_value, by_leaf, by_node, by_getattr]


@pytest.mark.parametrize("body", slow_except((by_parameter, by_value, by_node), BODIES), ids=lambda f: f.__name__)
def test_frozen_parameters(body: Body) -> None:
    model = tlfx.align(Net(body))
    for requires_grad in (True, False, True):
        model.requires_grad_(requires_grad)
        output, _ = model(pictures(), target(3))
        expected = model(pictures())
        assert torch.equal(output, expected)
        assert output.requires_grad == expected.requires_grad
    assert len(planner_of(model).captures) == 2


def test_the_gradient_mode_and_the_images() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 5, 4, 4).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.stem(x).mean((2, 3))
            return y * 2 if y.requires_grad else y

    model = tlfx.align(Asks())
    for requires_grad in (False, True):
        images = pictures().requires_grad_(requires_grad)
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                assert torch.equal(model(images, target(3))[0], model(images))


def test_a_forward_that_does_not_ask_is_captured_once() -> None:
    model = tlfx.align(Net(lambda net, x: x * 2))
    model(pictures(), target(3))
    model.requires_grad_(False)
    model(pictures(), target(3))
    assert len(planner_of(model).captures) == 1
