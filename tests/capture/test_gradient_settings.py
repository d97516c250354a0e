"""Forwards that branch on what requires gradients are captured again where that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import pictures, slow_except
from test_same_model import Net, target
from torch import Tensor, is_grad_enabled, nn

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


def by_imported_name(net: Any, x: Tensor) -> Tensor:
    return x * 3 if is_grad_enabled() else x * 2


def by_inference(net: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        inner = torch.is_inference_mode_enabled()
    return x * (3 if torch.is_inference_mode_enabled() else 2) + inner


@pytest.mark.parametrize("body", [by_imported_name, by_inference])
def test_modes_of_the_caller(body: Body) -> None:
    model = tlfx.align(Net(body))
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            assert torch.equal(model(pictures(), target(3))[0], model(pictures()))


def by_compiler(net: Any, x: Tensor) -> Tensor:
    return x * 3 if torch.compiler.is_compiling() or torch.compiler.is_exporting() else x * 2


def by_dynamo(net: Any, x: Tensor) -> Tensor:
    return x * 3 if torch._dynamo.is_compiling() else x * 2


@pytest.mark.parametrize("body", [by_compiler, by_dynamo])
def test_a_forward_that_asks_whether_it_is_traced(body: Body) -> None:
    model = tlfx.align(Net(body))
    assert torch.equal(model(pictures(), target(3))[0], model(pictures()))


def test_a_forward_that_can_be_captured_only_if_told_that_it_is_traced() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.isnan().any():
            raise ValueError
        return x

    model = tlfx.align(Net(body))
    assert torch.equal(model(pictures(), target(3))[0], model(pictures()))
