"""Forwards that are slow or hard to capture: recurrent networks, computed sizes, NumPy, and gradients inside."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import pictures, slow_except
from numpy.random import default_rng
from test_same_model import Net, assert_same_training, target
from torch import Tensor, manual_seed, nn

import tlfx
from tlfx.errors import CaptureError, ProvenanceError

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


def by_generator(net: Any, x: Tensor) -> Tensor:
    return x * default_rng().random()


def by_bits(net: Any, x: Tensor) -> Tensor:
    return x * np.random.Generator(np.random.PCG64()).random()


def by_random_state(net: Any, x: Tensor) -> Tensor:
    return x * np.random.RandomState().rand()


def by_random_object(net: Any, x: Tensor) -> Tensor:
    return x * random.Random().random()


def by_system(net: Any, x: Tensor) -> Tensor:
    return x * random.SystemRandom().random()


def by_uuid(net: Any, x: Tensor) -> Tensor:
    return x * (uuid.uuid4().int % 7)


def by_backend(net: Any, x: Tensor) -> Tensor:
    torch.backends.cuda.enable_flash_sdp(True)
    return nn.functional.scaled_dot_product_attention(x, x, x)


def by_flags(net: Any, x: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return net.mix(x.mT).mT


def by_assignment(net: Any, x: Tensor) -> Tensor:
    torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark
    return x


def by_default_type(net: Any, x: Tensor) -> Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    y = x + torch.linspace(0, 1, 8).float()
    torch.set_default_dtype(before)
    return y


def by_next_node(net: Any, x: Tensor) -> Tensor:
    node = (x * 2).grad_fn
    node.next_functions[0][0].register_hook(lambda *gradients: None)
    return x


def by_edge(net: Any, x: Tensor) -> Tensor:
    torch.autograd.graph.get_gradient_edge(x).node.register_prehook(lambda gradients: None)
    return x


def by_backward_hook(net: Any, x: Tensor) -> Tensor:
    handle = net.mix.register_full_backward_hook(lambda module, inside, outside: (inside[0] * 3,))
    y: Tensor = net.mix(x.mT).mT
    handle.remove()
    return y


def by_imported_name(net: Any, x: Tensor) -> Tensor:
    manual_seed(3)
    return x * torch.rand(8)


def by_jvp(net: Any, x: Tensor) -> Tensor:
    return x + torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1]


def by_packing(net: Any, x: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 16), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]


def by_sequences(net: Any, x: Tensor) -> Tensor:
    return x + nn.utils.rnn.pack_sequence(list(x)).data.mean()


REFUSED = [
    (by_generator, r"makes a random generator without a seed \(numpy.random\).*torch's functions"),
    (by_bits, r"makes a random generator without a seed \(numpy.random\)"),
    (by_random_state, r"makes a random generator without a seed \(numpy.random\)"),
    (by_random_object, r"makes a random generator without a seed \(random.Random\)"),
    (by_system, r"makes a random generator without a seed \(random.SystemRandom\)"),
    (by_uuid, r"makes a random generator without a seed \(os.urandom\)"),
    (by_backend, r"chooses kernels of attention for all code after it \(torch.backends.cuda\).*use .*sdpa_kernel"),
    (by_flags, r"changes a setting of torch for all code \(torch.backends.mkldnn.flags\).*around the call"),
    (by_assignment, r"changes a setting of torch for all code \(an attribute of torch.backends\)"),
    (by_default_type, r"changes a setting of torch for all code \(torch.set_default_dtype\)"),
    (by_next_node, r"registers hooks on the graph of gradients.*use Tensor.register_hook"),
    (by_edge, r"registers hooks on the graph of gradients"),
    (
        by_backward_hook,
        r"registers a backward hook on a module \(register_full_backward_hook\).*outside",
    ),
    (by_imported_name, r"reads or sets the random state of torch \(torch.manual_seed\)"),
    (
        by_jvp,
        r"computes derivatives by forward-mode differentiation \(torch.func.jvp\).*align the part of the model",
    ),
    (by_packing, r"packs sequences \(pack_padded_sequence\).*pad them"),
    (by_sequences, "packs sequences"),
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


def test_seeded_generators_are_captured() -> None:
    assert_same_training(lambda net, x: x * np.random.default_rng(3).random() * random.Random(3).random())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_samples_as_steps_are_refused(kind: type[nn.Module]) -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.recurrent(x.mean(1))[0]
        return x + y[:, None]

    with pytest.raises(ProvenanceError, match=r"runs over the samples of the batch as over steps.*batch_first=True"):
        tlfx.align(Net(body, recurrent=kind(8, 8)), example=pictures())


DYNAMO = """
import torch, tlfx
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

class Flex(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 16, 16, device="cpu")

    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT[:, None]
        return flex_attention(tokens, tokens, tokens, block_mask=self.mask)[:, 0].mean(1)

tlfx.align(Flex().eval().requires_grad_(False), example=torch.rand(2, 3, 16, 16))

def asks(x):
    return x * 2 if torch.is_grad_enabled() else x

assert torch.equal(torch.compile(asks, fullgraph=True, backend="eager")(torch.ones(2)), torch.full((2,), 2.0))
"""


@pytest.mark.slow
def test_a_capture_leaves_the_tables_of_dynamo_as_they_are() -> None:
    """Flex attention runs dynamo while functions of torch are replaced."""
    subprocess.run([sys.executable, "-c", DYNAMO], check=True)


def test_numpy_of_constants_is_captured() -> None:
    assert_same_training(lambda net, x: x * torch.from_numpy(np.linspace(0, 1, 8, dtype=np.float32)))


def test_a_capture_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = tlfx.align(Net(lambda net, x: x))
    with caplog.at_level(logging.INFO, logger="tlfx"):
        model(pictures(), target(3))
    assert "Net is captured for images (3, 3, 16, 16)" in caplog.messages
