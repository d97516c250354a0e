"""Ratios are taken in pairs, and memory is that of a step."""

from __future__ import annotations

import time
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tlfx.analysis.calls import time_calls
from tlfx.analysis.speed import ALIGNED, CAPTURED, PLAIN, PUBLISHED, Settings, Timing, bench, compare


def test_ratios_are_taken_in_pairs() -> None:
    """A slow spell that meets both steps of a pair does not count."""
    timing = Timing([2.2, 11.0, 3.3], [2.0, 10.0, 3.0], images=4, memory=30, plain_memory=20)
    assert timing.ratio == pytest.approx(1.1)
    assert timing.spread == pytest.approx((1.1, 1.1))
    assert timing.throughput == pytest.approx(4 / 3.3)
    assert timing.memory_ratio == 1.5


def test_steps_alternate_and_none_always_runs_first() -> None:
    ran: list[str] = []
    steps = {PLAIN: lambda: ran.append("plain"), "other": lambda: ran.append("other")}
    compare(steps, Settings(pairs=2, warm_up=0))
    assert ran[2:] == ["plain", "other", "other", "plain"]


def test_time_and_memory_of_a_step() -> None:
    def step(seconds: float, numbers: int) -> None:
        torch.zeros(numbers)
        time.sleep(seconds)

    steps = {PLAIN: lambda: step(0.01, 10_000), "other": lambda: step(0.03, 30_000)}
    timing = compare(steps, Settings(batch=2, pairs=3))["other"]
    assert 2 < timing.ratio < 4
    assert timing.memory == pytest.approx(120_000, rel=0.01)
    assert timing.memory_ratio == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("forward_only", [False, True])
def test_a_model_is_timed_plain_and_aligned(forward_only: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
    timings = bench(model, (3, 16, 16), Settings(batch=2, pairs=2, forward_only=forward_only))
    assert list(timings) == [PLAIN, CAPTURED, ALIGNED]
    assert timings[PLAIN].ratio == 1.0
    assert all(len(t.seconds) == 2 and t.memory > 0 for t in timings.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(len(t.calls) == 2 and t.call > 0 and t.first is None for t in timings.values())
    plain, captured, aligned = (timings[name].kernels for name in (PLAIN, CAPTURED, ALIGNED))
    assert plain == captured
    assert plain is not None
    assert aligned is not None
    assert aligned > plain


def test_calls_are_timed_in_turn() -> None:
    ran: list[str] = []

    def call(name: str, seconds: float) -> None:
        ran.append(name)
        time.sleep(seconds)

    calls = {"short": partial(call, "short", 0.0), "long": partial(call, "long", 0.02)}
    times = time_calls(calls, 2, torch.device("cpu"))
    assert ran == ["short", "long", "long", "short"]
    assert max(times["short"]) < 0.02 <= min(times["long"])


@pytest.mark.slow
def test_compiled_steps_tell_what_the_first_one_took() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
    timings = bench(model, (3, 16, 16), Settings(batch=2, pairs=1, warm_up=0, compile=True))
    assert all(t.first is not None and t.first > t.seconds[0] and t.kernels is None for t in timings.values())


def test_steps_in_a_row_have_an_optimizer_step_each() -> None:
    stepped: list[object] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: stepped.append(optimizer))
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
    timings = bench(model, (3, 16, 16), Settings(batch=2, pairs=2, warm_up=0, steps=3))
    hook.remove()
    assert len(stepped) == 3 * (2 + 1) * 3  # kinds of step, pairs and the one for memory, steps in a row
    assert all(t.images == 6 for t in timings.values())


@pytest.mark.slow
def test_the_published_formulation_is_timed_beside() -> None:
    model = timm.create_model("test_vit", img_size=32, patch_size=16)
    timings = bench(model, (3, 32, 32), Settings(batch=2, pairs=1, warm_up=0, attention="fused", published=True))
    assert list(timings) == [PLAIN, CAPTURED, ALIGNED, PUBLISHED]
    assert timings[PUBLISHED].ratio > 0
