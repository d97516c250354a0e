"""Attributes of Python on tensors, and parameters outside of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import pictures, slow_except
from test_same_model import Net, assert_same_training, target
from torch import Tensor, nn

import tlfx

Body = Callable[[Any, Tensor], Tensor]


def read(net: Any, x: Tensor) -> Tensor:
    return x * net.mix.weight.scale * net.count.scale


def test_attributes_of_parameters_and_buffers_are_read() -> None:
    def make(body: Body) -> nn.Module:
        net: Any = Net(body)
        net.mix.weight.scale, net.count.scale = 2.0, 3.0
        return net

    assert_same_training(read, make)


def test_attributes_within_a_forward() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        x.grid = (4, 4)  # type: ignore[attr-defined]
        return x.unflatten(1, x.grid).transpose(1, 2).flatten(1, 2)  # type: ignore[attr-defined]

    assert_same_training(body)


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3))
        y.features = x  # type: ignore[attr-defined]
        return y


def on_a_parameter(net: Any, x: Tensor) -> Tensor:
    net.mix.weight.features = x
    return x


def on_a_kept_tensor(net: Any, x: Tensor) -> Tensor:
    net.kept = x.detach()
    net.kept.features = x
    return x


@pytest.mark.parametrize("make", [Returned, lambda: Net(on_a_parameter), lambda: Net(on_a_kept_tensor)])
def test_attributes_of_what_lasts_are_refused(make: Callable[[], nn.Module]) -> None:
    words = r"(?s)gives the attribute 'features' to a tensor.*source: .*test_tensor_attributes.*self\.features = "
    with pytest.raises(tlfx.CaptureError, match=words):
        tlfx.align(make())(pictures(), target(3))


SCALE = nn.Parameter(torch.ones(8))


def in_a_list(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.hidden[0](x)
    return y


def twice(net: Any, x: Tensor) -> Tensor:
    y: Tensor = x * net.hidden[0] * net.hidden[0]
    return y


def in_a_closure(outer: nn.Parameter) -> Body:
    return lambda net, x: x * outer


OUTSIDE: dict[str, Callable[[], tuple[Body, list[nn.Parameter], dict[str, Any]]]] = {
    "a list": lambda: (lambda layer: (in_a_list, list(layer.parameters()), {"hidden": [layer]}))(nn.Linear(8, 8)),
    "a list, read twice": lambda: (lambda p: (twice, [p], {"hidden": [p]}))(nn.Parameter(torch.ones(8))),
    "a global variable": lambda: (lambda net, x: x * SCALE, [SCALE], {}),
    "a closure": lambda: (lambda p: (in_a_closure(p), [p], {}))(nn.Parameter(torch.ones(8))),
}


@pytest.mark.parametrize("place", slow_except(("a list",), OUTSIDE))
def test_parameters_outside_of_the_model_are_trained(place: str) -> None:
    body, outside, state = OUTSIDE[place]()
    model = tlfx.align(Net(body, **state))
    for _ in range(2):
        gradients = []
        for output in (model(pictures(), target(3))[0], model(pictures())):
            gradients.append([output, *torch.autograd.grad(output.square().sum(), outside)])
        assert all(map(torch.equal, *gradients))
        with torch.no_grad():
            outside[0].mul_(1.5)
