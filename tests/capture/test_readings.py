"""What a forward reads outside of its modules' settings may change between calls: the model is captured again."""

from __future__ import annotations

import collections
import logging
import types
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import pictures, slow_except
from test_same_model import Net, target
from torch import Tensor, nn

import tlfx
from tlfx.aligned import planner_of

SCALE = 2.0
TABLE: dict[str, Any] = {"scale": 2.0, "tensor": torch.ones(1)}
ACTIVATION: Any = torch.relu
POINT = torch.tensor(2.0)
OTHER_STATE = 0
DICTIONARY = collections.UserDict(scale=2.0)
VARIABLE = ContextVar("VARIABLE", default=2.0)


class Config:
    """An object with class attributes."""

    rate = 2.0
    unread = 0


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("late", "value")

    def __init__(self) -> None:
        self.value = 2.0


def scaled(x: Tensor) -> Tensor:
    return x * SCALE


@torch.no_grad()
def offset() -> Tensor:
    """A function that a library's decorator holds."""
    return torch.full((), SCALE)


def closure() -> tuple[Callable[[], float], Callable[[float], None]]:
    value = 2.0

    def get() -> float:
        return value

    def put(other: float) -> None:
        nonlocal value
        value = other

    return get, put


GET, PUT = closure()
MODULE = types.ModuleType("settings_of_a_test")
MODULE.scale = 2.0  # type: ignore[attr-defined]


def assign(name: str, value: Any, net: Any = None) -> None:
    globals()[name] = value


def by_import(net: Any, x: Tensor) -> Tensor:
    from test_readings import SCALE as SCALE_THEN

    return x * SCALE_THEN


def by_own_write(net: Any, x: Tensor) -> Tensor:
    y = x * net.info["scale"]
    net.info = {"scale": net.info["scale"], "last": y.detach()}
    return y


Case = tuple[Callable[[Any, Tensor], Tensor], Callable[[Any], Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "a global variable": (lambda net, x: scaled(x), partial(assign, "SCALE", 3.0), {}),
    "a function": (lambda net, x: ACTIVATION(x), partial(assign, "ACTIVATION", torch.tanh), {}),
    "in a decorated function": (lambda net, x: x + offset(), partial(assign, "SCALE", 4.0), {}),
    "imported in the forward": (by_import, partial(assign, "SCALE", 5.0), {}),
    "by globals()": (lambda net, x: x * globals()["SCALE"], partial(assign, "SCALE", 6.0), {}),
    "beside a tensor": (lambda net, x: x * TABLE["scale"] * TABLE["tensor"], lambda net: TABLE.update(scale=3.0), {}),
    "beside a tensor of the model": (
        lambda net, x: x * net.info[0] * net.info[1],
        lambda net: net.info.__setitem__(0, 3.0),
        {"info": [2.0, torch.ones(1)]},
    ),
    "beside a tensor that the forward writes": (
        by_own_write,
        lambda net: net.info.update(scale=3.0),
        {"info": {"scale": 2.0, "last": None}},
    ),
    "a class attribute": (
        lambda net, x: x * net.config.rate,
        lambda net: setattr(Config, "rate", Config.rate + 1),
        {"config": Config()},
    ),
    "an attribute by its name": (
        lambda net, x: x * getattr(net.config, f"{net.kind}_rate", 1.0),
        lambda net: setattr(net.config, "late_rate", 3.0),
        {"config": Config(), "kind": "late"},
    ),
    "slots": (lambda net, x: x * net.slots.value, lambda net: setattr(net.slots, "value", 3.0), {"slots": Slotted()}),
    "a slot that was empty": (
        lambda net, x: x * getattr(net.slots, "late", 1.0),
        lambda net: setattr(net.slots, "late", 3.0),
        {"slots": Slotted()},
    ),
    "a closure": (lambda net, x: x * GET(), lambda net: PUT(GET() + 1), {}),
    "an array": (
        lambda net, x: x * float(net.array[0]),
        lambda net: net.array.__setitem__(0, 3.0),
        {"array": np.array([2.0])},
    ),
    "a module of Python": (
        lambda net, x: x * MODULE.scale,
        lambda net: setattr(MODULE, "scale", MODULE.scale + 1),
        {},
    ),
    "beside a function": (
        lambda net, x: net.both.function(x) * net.both.scale,
        lambda net: setattr(net.both, "scale", 3.0),
        {"both": types.SimpleNamespace(function=torch.relu, scale=2.0)},
    ),
    "a module in a list": (
        lambda net, x: net.hidden[0](x),
        lambda net: setattr(net.hidden[0], "negative_slope", 0.5),
        {"hidden": [nn.LeakyReLU(0.1)]},
    ),
    "a tensor that was missing": (
        lambda net, x: x * net.gain if hasattr(net, "gain") else x,
        lambda net: setattr(net, "gain", torch.tensor(3.0)),
        {},
    ),
    "the shape of a tensor": (
        lambda net, x: x * net.plain.shape[0],
        lambda net: setattr(net, "plain", torch.ones(5)),
        {"plain": torch.ones(2)},
    ),
    "the number in a tensor": (lambda net, x: x * float(POINT), lambda net: POINT.add_(1), {}),
    "the bound of a slice": (
        lambda net, x: x[:, : net.most],
        lambda net: net.most.fill_(3),
        {"most": torch.tensor(5)},
    ),
    "a dictionary of the standard library": (
        lambda net, x: x * DICTIONARY["scale"],
        lambda net: DICTIONARY.update(scale=DICTIONARY["scale"] + 1),
        {},
    ),
    "a context variable": (
        lambda net, x: x * VARIABLE.get(),
        lambda net: VARIABLE.set(VARIABLE.get() + 1),
        {},
    ),
    "an attribute of a parameter": (
        lambda net, x: x * getattr(net.mix.weight, "scale", 1.0),
        lambda net: setattr(net.mix.weight, "scale", getattr(net.mix.weight, "scale", 1.0) + 1),
        {},
    ),
    "a comparison of tensors": (
        lambda net, x: x * 2 if torch.equal(net.one, net.other) else x,
        lambda net: net.one.fill_(1),
        {"one": torch.zeros(1), "other": torch.ones(1)},
    ),
}
FAST = (
    *("a global variable", "beside a tensor of the model", "beside a tensor that the forward writes", "slots"),
    *(
        "a context variable",
        "a class attribute",
        "a closure",
        "an array",
        "a tensor that was missing",
        "the number in a tensor",
    ),
)


@pytest.mark.parametrize("name", slow_except(FAST, CASES))
def test_what_is_read_at_each_call(name: str) -> None:
    body, change, state = CASES[name]
    model = tlfx.align(Net(body, **deepcopy(state)))
    model(pictures(), target(3))
    model(pictures(), target(3))
    captures = list(planner_of(model).captures)
    before = model(pictures())
    change(model)
    expected = model(pictures())
    output, _ = model(pictures(), target(3))
    assert output.shape != before.shape or not torch.equal(output, before)
    assert torch.equal(output, expected)
    model(pictures(), target(3))
    assert len(planner_of(model).captures) == len(captures) + 1


def test_a_recapture_names_what_the_forward_reads(caplog: pytest.LogCaptureFixture) -> None:
    model = tlfx.align(Net(lambda net, x: scaled(x) * TABLE["scale"]))
    with caplog.at_level(logging.INFO, "tlfx"):
        model(pictures(), target(3))
        assign("SCALE", SCALE + 1)
        model(pictures(), target(3))
        TABLE["scale"] += 1
        model(pictures(), target(3))
    assert [r.getMessage() for r in caplog.records if r.name == "tlfx"][1:] == [
        "Net is captured again: the global variable SCALE has changed",
        "Net is captured again: the global variable TABLE['scale'] has changed",
    ]


class Trainer:
    """State that a module refers to and its forward does not read."""

    def __init__(self) -> None:
        self.step, self.seen = 0, [torch.zeros(1)]


def test_other_state_may_change() -> None:
    """State that no code of the forward names, what an observing hook keeps, equal values, and caches by size."""
    cache: dict[int, Tensor] = {}
    seen: list[Any] = []

    def body(net: Any, x: Tensor) -> Tensor:
        if x.shape[1] not in cache:
            cache[x.shape[1]] = torch.ones(x.shape[1], 1)
        return scaled(x) * net.config.rate * cache[x.shape[1]]

    def changed(step: int) -> None:
        global OTHER_STATE
        OTHER_STATE = step
        trainer.step, Config.unread = step, step
        trainer.seen.append(torch.zeros(1))
        assign("SCALE", float(str(SCALE)))
        cache[100 + step] = torch.ones(1)

    trainer = Trainer()
    model = Net(body, trainer=[trainer], config=Config())
    model.mix.register_forward_hook(lambda module, args, output: seen.append(output.sum().item()))
    tlfx.align(model)
    model(pictures(), target(3))
    model(pictures(), target(3))
    captures = len(planner_of(model).captures)
    for step in range(3):
        changed(step)
        model(pictures(), target(3))
    assert len(planner_of(model).captures) == captures
    assert len(seen) == 5


def test_another_large_array_is_noticed() -> None:
    """Elements of arrays of this size are not compared, as README says."""
    model = tlfx.align(Net(lambda net, x: x * float(net.table[0]), table=np.ones(200_001)))
    model(pictures(), target(3))
    model.table = np.full(200_001, 3.0)  # type: ignore[assignment]
    assert torch.equal(model(pictures(), target(3))[0], model(pictures()))
