"""Forwards that are slow or hard to capture: recurrent networks, computed sizes, NumPy, and gradients inside."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import pictures, slow_except
from test_same_model import Net, assert_same_training, target
from torch import Tensor, nn

import tlfx
from tlfx.errors import CaptureError

Body = Callable[[Any, Tensor], Tensor]
KINDS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(8, 8, batch_first=True),
    "both ways": lambda: nn.LSTM(8, 4, batch_first=True, bidirectional=True),
    "two layers": lambda: nn.GRU(8, 8, num_layers=2, batch_first=True),
    "projected": lambda: nn.LSTM(8, 16, proj_size=8, batch_first=True),
    "relu": lambda: nn.RNN(8, 8, nonlinearity="relu", batch_first=True),
    "steps first": lambda: nn.GRU(8, 8),
}


class Recurrent(Net):
    def __init__(self, body: Body, kind: str = "lstm") -> None:
        super().__init__(body)
        self.recurrent = KINDS[kind]()


@pytest.mark.parametrize("kind", slow_except(("lstm", "two layers", "steps first"), KINDS))
def test_recurrent_networks(kind: str) -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        x = x if net.recurrent.batch_first else x.transpose(0, 1)
        y, _ = net.recurrent(x)
        if y.requires_grad:
            y.register_hook(lambda g: g * 2)
        return y if net.recurrent.batch_first else y.transpose(0, 1)

    assert_same_training(body, lambda body: Recurrent(body, kind))


def test_long_sequences_are_captured_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), Transposed(), Long(), nn.Linear(8, 5))
    start = time.perf_counter()
    tlfx.align(model, example=torch.zeros(2, 3, 16, 16))
    assert time.perf_counter() - start < 30  # 256 steps took minutes


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class Long(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y.mean(1)


# sizes


def by_division(net: Any, x: Tensor) -> Tensor:
    return x.reshape(int(torch.div(x.shape[0] * 16, 16, rounding_mode="floor")), -1, 8)


def by_true_division(net: Any, x: Tensor) -> Tensor:
    return x.reshape(int(x.numel() / x.shape[0] / 8), -1, 8).reshape(-1, 16, 8)


def by_floor_division(net: Any, x: Tensor) -> Tensor:
    return x.reshape(-1, (x.shape[0] * 16) // x.shape[0], 8)


def by_floor(net: Any, x: Tensor) -> Tensor:
    return x.view(math.floor(x.numel() / 128), 16, 8)


def by_root(net: Any, x: Tensor) -> Tensor:
    side = int((x.numel() // x.shape[0] // 8) ** 0.5)
    return x.view(x.shape[0], side, side, 8).flatten(1, 2)


def by_tensor(net: Any, x: Tensor) -> Tensor:
    return x[:, : int(torch.tensor(x.shape[0] * 2).clamp(max=16))]


SIZES = [by_division, by_true_division, by_floor_division, by_floor, by_root, by_tensor]


@pytest.mark.parametrize("body", slow_except((by_division, by_tensor), SIZES), ids=lambda f: f.__name__)
def test_sizes_that_are_computed(body: Body) -> None:
    assert_same_training(body)


# refused


def by_numpy(net: Any, x: Tensor) -> Tensor:
    return x * torch.from_numpy(np.array(x.detach().cpu().numpy().mean()))


def by_asarray(net: Any, x: Tensor) -> Tensor:
    return x * float(np.asarray(x.detach()).max())


def by_numpy_function(net: Any, x: Tensor) -> Tensor:
    return x + torch.as_tensor(np.sqrt(x.detach()))


def by_gradient(net: Any, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
    return x + gradient


def by_backward(net: Any, x: Tensor) -> Tensor:
    x.square().sum().backward(retain_graph=True)
    return x


def by_backward_function(net: Any, x: Tensor) -> Tensor:
    y = x.detach().requires_grad_()
    torch.autograd.backward(y.sum())
    return x


REFUSED = [
    (by_numpy, "converts a tensor to NumPy.*functions of torch"),
    (by_asarray, "converts a tensor to NumPy"),
    (by_numpy_function, "converts a tensor to NumPy"),
    (by_gradient, r"computes gradients inside \(torch.autograd.grad\).*align the part of the model before it"),
    (by_backward, r"computes gradients inside \(Tensor.backward\)"),
    (by_backward_function, r"computes gradients inside \(torch.autograd.backward\)"),
]


@pytest.mark.parametrize(("body", "words"), REFUSED, ids=lambda x: getattr(x, "__name__", ""))
def test_what_cannot_be_captured_is_named(body: Body, words: str) -> None:
    place = rf"module: the model itself \(Net\)\n  source: .*test_hard_forwards.py:\d+ in {body.__name__}: "
    with pytest.raises(CaptureError, match=f"(?s)the forward of Net {words}.*{place}"):
        tlfx.align(Net(body), example=pictures())


def test_numpy_of_constants_is_captured() -> None:
    assert_same_training(lambda net, x: x * torch.from_numpy(np.linspace(0, 1, 8, dtype=np.float32)))


def test_a_capture_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = tlfx.align(Net(lambda net, x: x))
    with caplog.at_level(logging.INFO, logger="tlfx"):
        model(pictures(), target(3))
    assert "Net is captured for images (3, 3, 16, 16)" in caplog.messages
