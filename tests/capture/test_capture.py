"""Capture: the graph does what the model does, bit for bit, and leaves the model and the world as they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    LABEL,
    SIDE,
    assert_same,
    assert_same_step,
    hooks_of,
    mixture,
    pair,
    pictures,
    slow_except,
    vit,
)
from timm.models.convit import ConVit
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import tlfx
from tlfx.aligned import planner_of
from tlfx.analysis.invariants import share
from tlfx.errors import CaptureError

TOKENS = 16
SLOW = pytest.mark.slow
Function = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Images as tokens (batch, 16, 8), and a function of the module and the tokens."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.linear, self.norm = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.patches(x).flatten(2).transpose(1, 2))

    def attend(self, x: Tensor) -> Tensor:
        return x + scaled_dot_product_attention(self.linear(x), x, x)


def labels(function: Function) -> Tensor:
    """Share of the first image in every token, (batch, tokens)."""
    return share(tlfx.align(Net(function)), pictures(), mixture().mask)


def captured_batches(model: nn.Module) -> list[int | None]:
    """For each capture of a model, the batch size it is bound to."""
    return [plan.captured.batch for plan in planner_of(model).plans]


# what capture leaves alone


class Noisy(nn.Module):
    """Draws in every way that torch knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.drop = nn.Conv2d(3, CLASSES, 4, 4), nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.patches(x)) * (1 + torch.rand(x.shape[0], 1, 1, 1))
        x = x + torch.randn_like(x) * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)
        return x.mean((2, 3)) + torch.rand(()) * torch.empty(CLASSES).normal_()


@pytest.mark.parametrize("build", [Noisy, pytest.param(lambda: vit(drop_path_rate=0.5), marks=SLOW)])
def test_the_random_state_stays(build: Callable[[], nn.Module]) -> None:
    model = build()
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state(legacy=True)[1].copy(), random.getstate()
    tlfx.align(model, example=pictures())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state(legacy=True)[1], states[1])
    assert random.getstate() == states[2]


def test_parameters_and_buffers_stay() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(128, 5))
    model = tlfx.align(deepcopy(plain), example=pictures())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same(model.state_dict(), plain.state_dict())
    assert [p.grad for p in model.parameters()] == [None] * 6
    assert all(m.training for m in model.modules())


class Remembering(nn.Module):
    """Keeps things for itself in plain attributes, as code with caches and counters does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, CLASSES, 4, 4)
        self.calls = 0
        self.cache: dict[int, Tensor] = {}
        self.last: Tensor | None = None
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.patches(x)
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[-1])
        if x.shape[-1] not in self.cache:
            self.cache[x.shape[-1]] = torch.arange(x.shape[-1]).float()
        self.last, self.batch = x.detach(), x.shape[0]
        return (x * self.grid + self.cache[x.shape[-1]]).mean((2, 3))


def attributes(model: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(model).items() if not k.startswith("_") and k != "calls"}


def test_plain_attributes_are_those_of_a_plain_call() -> None:
    plain = Remembering()
    with pytest.raises(CaptureError, match=r"changes calls at each call otherwise \(1, then 2\)"):
        tlfx.align(Remembering())(pictures(), mixture())
    aligned = tlfx.align(Remembering(), ignore_state=["calls"], example=pictures())
    assert_same(attributes(aligned), attributes(plain))
    for images in (pictures(), pictures(2), pictures()):
        assert_same_step(plain, aligned, images, mixture(len(images)))
        assert_same(attributes(aligned), attributes(plain))
    assert torch.equal(aligned(pictures()), plain(pictures()))
    assert aligned.calls == 1


# what a graph does as the model does


@pytest.mark.parametrize(
    "options", [pytest.param({"proj_drop_rate": 0.2, "attn_drop_rate": 0.2}, marks=SLOW), {"drop_path_rate": 0.3}]
)
def test_dropped_parts_are_the_same_with_the_same_seed(options: dict[str, float]) -> None:
    plain, aligned = pair(vit(drop_rate=0.5, **options))
    assert_same_step(plain, aligned, pictures(), seed=1)
    first = aligned(pictures(), mixture())[0]
    assert not torch.equal(aligned(pictures(), mixture())[0], first)
    assert_same_step(plain, aligned, pictures(5), seed=2)


def test_dropped_patches_are_the_same_with_the_same_seed() -> None:
    plain, aligned = pair(vit(patch_drop_rate=0.5))
    soft = assert_same_step(plain, aligned, pictures(), seed=1)
    assert not torch.equal(assert_same_step(plain, aligned, pictures(), seed=2), soft)


def test_a_forward_that_draws() -> None:
    plain, aligned = pair(Noisy())
    for seed in range(3):
        assert_same_step(plain, aligned, pictures(seed=seed + 1), seed=seed)


def test_statistics_of_batch_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Flatten(), nn.BatchNorm1d(128))
    plain, aligned = pair(model)
    start = deepcopy(plain.state_dict())
    for seed in range(3):
        assert_same_step(plain, aligned, pictures(seed=seed))
    assert int(aligned[1].num_batches_tracked) == 3
    assert not torch.equal(aligned[1].running_var, start["1.running_var"])


class Assigning(nn.Module):
    """Gives itself new buffers, and writes to one in place, at every call in training."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.steps: Tensor
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("in_place", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x - self.mean / (self.steps + 1) + self.in_place
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
            self.steps = self.steps + 1
            self.in_place += x.detach().amax((0, 1))
        return y


def test_buffers_that_a_forward_assigns() -> None:
    model = Net(lambda net, x: net.head(net.assigning(x)).mean(1))
    model.assigning = Assigning()
    plain, aligned = pair(model)
    for seed in range(3):
        assert_same_step(plain, aligned, pictures(seed=seed))
    assert int(aligned.assigning.steps) == 3
    assert sorted(aligned.state_dict()) == sorted(plain.state_dict())
    assert_same_step(plain.eval(), aligned.eval(), pictures())
    assert int(aligned.assigning.steps) == 3


def test_a_buffer_at_the_top_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2))
    plain, aligned = pair(Rooted(model))
    for seed in range(2):
        assert_same_step(plain, aligned, pictures(seed=seed))
    assert float(aligned.total) == float(plain.total) != 0.0


class Rooted(nn.Module):
    """Assigns a buffer of this module, not of a submodule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.total: Tensor
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x).mean(2)
        y = x * (1 + self.total)
        self.total = self.total + x.detach().sum()
        return y


@pytest.mark.slow
def test_indices_that_convit_assigns() -> None:
    torch.manual_seed(0)
    model = ConVit(img_size=SIDE, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=5, local_up_to_layer=1)
    plain, aligned = pair(model)
    assert_same_step(plain, aligned, pictures())
    assert torch.equal(aligned.blocks[0].attn.rel_indices, plain.blocks[0].attn.rel_indices)
    assert aligned.blocks[0].attn.rel_indices.abs().sum() > 0
    assert_same_step(plain, aligned, pictures(5))


def test_constants_made_in_forward() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        order = torch.tensor([2, 0, 1, *range(3, TOKENS)])
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        return (net.head(x[:, order]) * scale + torch.arange(5) + torch.ones(5, dtype=x.dtype)).mean(1)

    plain, aligned = pair(Net(function))
    assert_same_step(plain, aligned, pictures())
    assert_same_step(deepcopy(plain).double(), deepcopy(aligned).double(), pictures().double())


def test_constants_that_are_no_buffers() -> None:
    model = Net(lambda net, x: net.head(x * net.scale).mean(1))
    model.scale = torch.arange(8.0)
    plain, aligned = pair(model)
    assert_same_step(plain, aligned, pictures())
    plain.scale = aligned.scale = torch.ones(8)
    assert_same_step(plain, aligned, pictures())


def test_shared_parameters() -> None:
    def tied() -> Net:
        model = Net(lambda net, x: net.head(net.other(net.linear(x))).mean(1))
        model.other = nn.Linear(8, 8)
        model.other.weight = model.linear.weight
        return model

    plain, aligned = pair(tied())
    assert_same_step(plain, aligned, pictures())
    for model in (plain, aligned):
        model.other.weight = nn.Parameter(torch.eye(8))
    assert_same_step(plain, aligned, pictures())
    assert not torch.equal(aligned.linear.weight.grad, aligned.other.weight.grad)


def test_one_module_called_twice() -> None:
    plain, aligned = pair(Net(lambda net, x: net.head(net.linear(net.attend(net.attend(net.linear(x)))))))
    assert_same_step(plain, aligned, pictures())


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_parametrised_modules(kind: str) -> None:
    model = Net(lambda net, x: net.head(net.linear(x)).mean(1))
    getattr(nn.utils.parametrizations, kind)(model.linear)
    plain, aligned = pair(model)
    for seed in range(2):
        assert_same_step(plain, aligned, pictures(seed=seed))


# regions of another mode


def without_autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        x = net.attend(net.norm(x.float()))
    return net.head(x).mean(1)


def with_autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = net.attend(x)
        with torch.autocast("cpu", enabled=False):
            x = net.norm(x.float())
    return net.head(x.float()).mean(1)


def without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = net.linear(x).sigmoid()
    return net.head(net.linear(x) * gate).mean(1)


@torch.no_grad()
def statistic(net: Net, x: Tensor) -> Tensor:
    return net.linear(x).mean(-1, keepdim=True)


def decorated(net: Net, x: Tensor) -> Tensor:
    return net.head(net.attend(x - statistic(net, x))).mean(1)


def gradients_within_none(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.norm(x)
        with torch.enable_grad():
            x = net.linear(x)
    return net.head(x).mean(1)


def autocast_within_no_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        gate = net.linear(x.float())
    with torch.no_grad():
        gate = net.norm(gate).to(x.dtype)
    return net.head(net.attend(x) * gate).mean(1)


def no_gradients_within_autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        gate = net.linear(x.float())
    return net.head(x * gate).mean(1)


def written_in_place(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    with torch.autocast("cpu", enabled=False):
        x[:, :4] += x[:, 4:8].relu()
    return net.head(net.attend(x)).mean(1)


REGIONS = [
    without_autocast,
    with_autocast,
    without_gradients,
    decorated,
    gradients_within_none,
    autocast_within_no_gradients,
    no_gradients_within_autocast,
    written_in_place,
]


@pytest.mark.parametrize("region", slow_except((with_autocast, without_gradients), REGIONS))
def test_regions_of_another_mode(region: Function) -> None:
    plain, aligned = pair(Net(region))
    soft = assert_same_step(plain, aligned, pictures())
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_step(plain, aligned, pictures())
    with torch.no_grad():
        assert torch.equal(aligned(pictures(), mixture())[1], soft)


def test_regions_do_not_change_labels() -> None:
    for region in (without_autocast, written_in_place):
        source = Net(region), Net(PLAINLY[region])
        computed, expected = (share(tlfx.align(m), pictures(), mixture().mask) for m in source)
        torch.testing.assert_close(computed, expected, **LABEL)


PLAINLY: dict[Function, Function] = {
    without_autocast: lambda net, x: net.head(net.attend(net.norm(x))).mean(1),
    written_in_place: lambda net, x: net.head(
        net.attend(torch.cat((x[:, :4] + x[:, 4:8].relu(), x[:, 4:]), 1)),
    ).mean(1),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("region", slow_except([gradients_within_none], [without_gradients, gradients_within_none]))
def test_a_first_call_without_gradients(region: Function, mode: Callable[[], Any]) -> None:
    plain, aligned = pair(Net(region))
    with mode():
        aligned(pictures(), mixture())
    assert_same_step(plain, aligned, pictures())
    assert len(captured_batches(aligned)) == 1


# in-place writes and views


def shift_in_place(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :-2] = x[:, 2:]
    out[:, -2:] = x[:, :2]
    return out


def shift_channels_in_place(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :-1, :4] = x[:, 1:, :4]
    out[:, 1:, 4:] = x[:, :-1, 4:]
    return net.linear(out)


def shift_channels(net: Net, x: Tensor) -> Tensor:
    nothing = x.new_zeros(x.shape[0], 1, 4)
    up, down = torch.cat((x[:, 1:, :4], nothing), 1), torch.cat((nothing, x[:, :-1, 4:]), 1)
    return net.linear(torch.cat((up, down), 2))


def add_in_place(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] += x[:, 5]
    return x


def relu_in_place(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    first, second = x[:, :8], x[:, 8:]
    second.add_(first)
    first.relu_()
    return x


def relu_of_parts(net: Net, x: Tensor) -> Tensor:
    first, second = x.split(8, 1)
    return torch.cat((first.relu(), second + first), 1)


def earlier_view(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    view = x[:, :8]
    x[:, 0] = x[:, 9]
    return view


def write_through_a_chain_of_views(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    grid = x.transpose(1, 2).unflatten(2, (4, 4))
    grid[:, :, 0] = grid[:, :, 1]
    return x


def write_to_a_reshaped_copy(net: Net, x: Tensor) -> Tensor:
    copy = x.reshape(x.shape[0], -1)
    copy[:, :8] = copy[:, 8:16]
    return x


def write_in_a_loop(net: Net, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for i in range(TOKENS):
        out[:, i] = x[:, TOKENS - 1 - i]
    return out


def swap_in_place(net: Net, x: Tensor) -> Tensor:
    out = x.clone()
    out[:, ::2], out[:, 1::2] = x[:, 1::2], x[:, ::2]
    return out


def write_at_indices(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.tensor([0, 3])] = x[:, torch.tensor([5, 6])]
    return x


def write_without_gradient(net: Net, x: Tensor) -> Tensor:
    out = x.clone()
    out.detach()[:, 0] = x.detach()[:, 5]
    return out


def class_token_in_place(net: Net, x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], TOKENS + 1, 8)
    out[:, :1] = net.token
    out[:, 1:] = x
    return net.attend(out)


def class_token(net: Net, x: Tensor) -> Tensor:
    return net.attend(torch.cat((net.token.expand(x.shape[0], -1, -1), x), 1))


def replaced_token_in_place(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :1] = net.token
    return net.attend(x)


def replaced_token(net: Net, x: Tensor) -> Tensor:
    return net.attend(torch.cat((net.token.expand(x.shape[0], -1, -1), x[:, 1:]), 1))


def emptied_tokens_in_place(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :3] = 0
    return net.attend(x)


def emptied_tokens(net: Net, x: Tensor) -> Tensor:
    return net.attend(torch.cat((x.new_zeros(x.shape[0], 3, 8), x[:, 3:]), 1))


def emptied_channels_in_place(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, :4] = 0
    return net.attend(x)


def emptied_channels(net: Net, x: Tensor) -> Tensor:
    return net.attend(torch.cat((torch.zeros_like(x[..., :4]), x[..., 4:]), 2))


IN_PLACE: list[tuple[Function, Function]] = [
    (shift_in_place, lambda net, x: x.roll(-2, 1)),
    (shift_channels_in_place, shift_channels),
    (add_in_place, lambda net, x: torch.cat((x[:, :1] + x[:, 5:6], x[:, 1:]), 1)),
    (relu_in_place, relu_of_parts),
    (earlier_view, lambda net, x: torch.cat((x[:, 9:10], x[:, 1:8]), 1)),
    (write_through_a_chain_of_views, lambda net, x: torch.cat((x[:, 4:8], x[:, 4:]), 1)),
    (write_to_a_reshaped_copy, lambda net, x: x),
    (write_in_a_loop, lambda net, x: x.flip(1)),
    (swap_in_place, lambda net, x: x.unflatten(1, (8, 2)).flip(2).flatten(1, 2)),
    (write_at_indices, lambda net, x: torch.cat((x[:, 5:6], x[:, 1:3], x[:, 6:7], x[:, 4:]), 1)),
    (write_without_gradient, lambda net, x: torch.cat((x[:, 5:6], x[:, 1:]), 1)),
    (class_token_in_place, class_token),
    (replaced_token_in_place, replaced_token),
    (emptied_tokens_in_place, emptied_tokens),
    (emptied_channels_in_place, emptied_channels),
]


SOME = (
    *(shift_in_place, relu_in_place, write_through_a_chain_of_views, write_to_a_reshaped_copy, write_at_indices),
    *(write_without_gradient, class_token_in_place, emptied_channels_in_place),
)
EVERY_RUN = [case for case in IN_PLACE if case[0] in SOME]


@pytest.mark.parametrize(("in_place", "functional"), slow_except(EVERY_RUN, IN_PLACE))
def test_in_place_writes_carry_labels(in_place: Function, functional: Function) -> None:
    plain, aligned = pair(Net(in_place))
    assert_same_step(plain, aligned, pictures())
    torch.testing.assert_close(aligned(pictures()), Net(functional)(pictures()))
    torch.testing.assert_close(share(aligned, pictures(), mixture().mask), labels(functional), **LABEL)


def test_labels_that_vary_along_the_channels_of_an_output() -> None:
    computed = labels(lambda net, x: torch.cat((x, x.flip(1)), 2))
    tokens = labels(lambda net, x: x)
    torch.testing.assert_close(computed, (tokens + tokens.flip(1)) / 2, **LABEL)


# batch sizes


def windows(net: Net, x: Tensor) -> Tensor:
    """Attention in windows of four tokens, merged as the official Swin merges them: no symbol survives its int."""
    parted = net.attend(x.reshape(-1, 4, 8))
    batch = int(parted.shape[0] / (TOKENS / 4))
    return net.head(parted.view(batch, TOKENS, 8))


def any_batch(net: Net, x: Tensor) -> Tensor:
    return net.head(net.attend(x.reshape(-1, 4, 8)).reshape(x.shape[0], TOKENS, 8))


def test_a_forward_that_needs_to_know_the_batch_size() -> None:
    plain, aligned = pair(Net(windows))
    free = tlfx.align(Net(any_batch))
    for batch in (3, 2, 5, 1, 3):
        soft = assert_same_step(plain, aligned, pictures(batch))
        torch.testing.assert_close(soft, free(pictures(batch), mixture(batch))[1], **LABEL)
    assert sorted(captured_batches(aligned)) == [1, 2, 3, 5]  # type: ignore[type-var]
    assert captured_batches(free) == [None]


def sequence_first(net: Net, x: Tensor) -> Tensor:
    """Tokens before the batch."""
    tokens = x.transpose(0, 1)
    tokens = tokens.reshape(TOKENS, int(tokens.shape[1] / 1), 8).transpose(0, 1)
    return net.head(net.attend(tokens).transpose(0, 1).mean(0))


@pytest.mark.slow
def test_a_batch_on_the_second_axis() -> None:
    plain, aligned = pair(Net(sequence_first))
    soft = assert_same_step(plain, aligned, pictures())
    assert captured_batches(aligned) == [3]
    expected = tlfx.align(Net(lambda net, x: net.head(net.attend(x).mean(1))))(pictures(), mixture())[1]
    torch.testing.assert_close(soft, expected, **LABEL)


def test_a_batch_of_one_that_cannot_be_told_from_other_axes() -> None:
    with pytest.raises(tlfx.CaptureError, match=r"(?s)a batch of 1 cannot be told from .* two images or more"):
        tlfx.align(Net(sequence_first))(pictures(1), mixture(1))


def test_a_second_tensor_with_the_batch_or_without() -> None:
    class Biased(Net):
        def forward(self, x: Tensor, bias: Any = None) -> Tensor:
            return self.head(self.patches(x).flatten(2).mean(2)) + bias

    plain, aligned = pair(Biased(lambda net, x: x))
    for batch, bias in ((3, torch.ones(3, 1)), (2, torch.ones(2, 1)), (4, torch.arange(5.0)), (5, torch.arange(5.0))):
        assert torch.equal(aligned(pictures(batch), bias, mixture(batch))[0], plain(pictures(batch), bias))


# what cannot be captured


def branch_on_a_value(net: Net, x: Tensor) -> Tensor:
    if x.sum() > 0:  # the line
        return x
    return -x


def loop_over_a_value(net: Net, x: Tensor) -> Tensor:
    for _ in range(int(x.abs().max())):  # the line
        x = x * 2
    return x


def item_in_a_condition(net: Net, x: Tensor) -> Tensor:
    return x if x.mean().item() > 0 else -x  # the line


@pytest.mark.parametrize("function", [branch_on_a_value, loop_over_a_value, item_in_a_condition])
def test_control_flow_that_depends_on_the_data(function: Function) -> None:
    model = Net(function)
    expected = model(pictures())
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"def {function.__name__}("))
    number = next(i for i in range(start, len(lines)) if "# the line" in lines[i])
    with pytest.raises(tlfx.CaptureError) as caught:
        tlfx.align(model)(pictures(), mixture())
    message = str(caught.value)
    assert "Net cannot be captured as a graph" in message
    assert f"source: {__file__}:{number + 1} in {function.__name__}: {lines[number].strip()}" in message
    assert "torch.where or masks of a fixed size, or align the part of the model without it" in message
    assert torch.equal(model(pictures()), expected)


def test_control_flow_inside_torch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8, momentum=None), nn.Flatten())
    with pytest.raises(tlfx.CaptureError, match=r"source: .*batchnorm\.py:\d+ in forward: .*num_batches_tracked"):
        tlfx.align(model)(pictures(), mixture())


def chosen_tokens(net: Net, x: Tensor) -> Tensor:
    return x[:, x[0].sum(-1) > 0].mean(1)


def counted(net: Net, x: Tensor) -> Tensor:
    return x.mean(1) + x.flatten(1).sum(1).nonzero().sum()


@pytest.mark.parametrize("function", [chosen_tokens, counted])
def test_sizes_that_depend_on_the_data(function: Function) -> None:
    wording = r"(?s)^Net has a tensor whose size depends on the data.*test_capture\.py.* -> \(.*\?.*\)\nReplace it by"
    with pytest.raises(tlfx.CaptureError, match=wording):
        tlfx.align(Net(function))(pictures(), mixture())


def test_a_forward_that_fails_by_itself() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(4, 8, 4, 4))
    wording = (
        r"(?s)^Sequential fails by itself, with or without alignment: RuntimeError: .*to have 4 channels.*"
        rf"It was given \(3, 3, {SIDE}, {SIDE}\) float32: pass valid arguments"
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(tlfx.CaptureError, match=wording):
        tlfx.align(model)(pictures(), mixture())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_refusal_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(tlfx.CaptureError):
        tlfx.align(Net(branch_on_a_value))(pictures(), mixture())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_chance_that_is_not_from_torch(draw: Callable[[], float]) -> None:
    model = Net(lambda net, x: x * 2 if draw() < 0.5 else x)
    state, numpy_state = random.getstate(), np.random.get_state(legacy=True)[2]
    with pytest.raises(tlfx.CaptureError, match="random generator of Python or NumPy: use torch's instead"):
        tlfx.align(model)(pictures(), mixture())
    assert random.getstate() == state
    assert np.random.get_state(legacy=True)[2] == numpy_state


class Recording(nn.Module):
    """Puts a hook on a layer at its first call, as Hugging Face's models do, and reads what the hook saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, CLASSES, 4, 4)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            self.layer.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.hooked = True
        self.seen.clear()
        self.layer(x)
        return torch.stack(self.seen).sum(0).mean((2, 3))


def test_hooks_that_a_forward_registers_are_registered_once() -> None:
    plain = Recording()
    aligned = tlfx.align(deepcopy(plain))
    outputs, _ = aligned(pictures(), mixture())
    assert torch.equal(outputs, plain(pictures()))
    assert torch.equal(aligned(pictures()), plain(pictures()))
    assert len(hooks_of(aligned)) == 1


def test_a_batch_of_one_that_cannot_be_told() -> None:
    """A model that computes with its batch size, captured for one image: the axis of three could be the batch."""

    class Repeats(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            pooled = x.mean((2, 3))
            return pooled, torch.stack([pooled] * (3 * len(x))).sum(0)

    aligned = tlfx.align(Repeats())
    with pytest.raises(tlfx.CaptureError, match=r"sum_1 over an axis that may be that of the batch"):
        aligned(pictures(1), mixture(1))
    _, (_, soft) = aligned(pictures(2), mixture(2))
    assert soft.shape == (2, 2)
