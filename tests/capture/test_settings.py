"""Settings of a model: what a capture depends on changes them, and nothing else does."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlfx
from tlfx.aligned import planner_of
from tlfx.calls.plans import MOST_PLANS
from tlfx.capture.arguments import Call
from tlfx.capture.settings import ModelSettings


@dataclass
class Config:
    """Settings that modules share, nested."""

    scale: float = 1.0
    sizes: list[int] = field(default_factory=lambda: [1, 2])


class Block(nn.Module):
    """Attributes of all kinds: numbers, names, containers and objects of them and of tensors, functions and tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.number: Any = 1
        self.name = "gelu"
        self.size: Any = (3, 3)
        self.seen: Any = (torch.ones(1), 2)
        self.mask = torch.ones(3)
        self.norm_again = self.norm
        self.rates: Any = [0.1, [1, 2]]
        self.options: Any = {"scale": 1, "modes": {"a", "b"}}
        self.config: Any = Config()
        self.act: Any = torch.relu
        self.results: list[Any] = []
        self.opaque = SimpleNamespace(count=0, function=print)
        self.table: Any = np.ones(3)


def model() -> nn.Sequential:
    return nn.Sequential(Block(), Block())


def swap_parts(block: Any) -> None:
    """The same parts under each other's names."""
    del block.norm_again
    block.other = block.norm
    del block.norm


def reorder_parts(block: Any) -> None:
    """The same parts in another order."""
    linear = block.linear
    del block.linear
    block.linear = linear


CHANGES: dict[str, Callable[[Any], Any]] = {
    "mode": lambda b: b.norm.eval(),
    "number": lambda b: setattr(b, "number", 2),
    "flag": lambda b: setattr(b, "number", True),
    "float": lambda b: setattr(b, "number", 1.0),
    "name": lambda b: setattr(b, "name", "relu"),
    "none": lambda b: setattr(b, "name", None),
    "tuple": lambda b: setattr(b, "size", (3, 4)),
    "type in a tuple": lambda b: setattr(b, "size", (3, 3.0)),
    "tuple to number": lambda b: setattr(b, "size", 3),
    "tuple of settings": lambda b: setattr(b, "seen", (1, 2)),
    "number to tensor": lambda b: setattr(b, "number", torch.ones(1)),
    "new setting": lambda b: setattr(b, "scale", 0.5),
    "removed setting": lambda b: delattr(b, "name"),
    "list": lambda b: b.rates.append(3),
    "list in a list": lambda b: b.rates[1].append(3),
    "type in a list": lambda b: b.rates[1].__setitem__(0, True),
    "dictionary": lambda b: b.options.update(scale=2),
    "type in a dictionary": lambda b: b.options.update(scale=1.0),
    "set in a dictionary": lambda b: b.options["modes"].add("c"),
    "object": lambda b: setattr(b.config, "scale", 2.0),
    "list in an object": lambda b: b.config.sizes.append(3),
    "another object": lambda b: setattr(b, "config", Config(scale=3.0)),
    "function": lambda b: setattr(b, "act", torch.tanh),
    "another opaque object": lambda b: setattr(b, "opaque", SimpleNamespace(function=print)),
    "array": lambda b: setattr(b, "table", np.ones(4)),
    "filled list": lambda b: b.results.append(2),
    "dtype": lambda b: b.double(),
    "shape": lambda b: setattr(b.linear, "weight", nn.Parameter(torch.ones(5, 3))),
    "shared": lambda b: setattr(b.norm, "weight", b.norm.bias),
    "no bias": lambda b: setattr(b.linear, "bias", None),
    "buffer": lambda b: b.register_buffer("late", torch.ones(2)),
    "class": lambda b: setattr(b, "linear", nn.Identity()),
    "class of the module": lambda b: setattr(b.norm, "__class__", nn.BatchNorm2d),
    "part": lambda b: b.add_module("late", nn.Identity()),
    "names of parts": swap_parts,
    "order of parts": reorder_parts,
    "hook": lambda b: b.register_forward_hook(lambda *_: None),
    "hook before": lambda b: b.linear.register_forward_pre_hook(lambda *_: None),
    "hook of gradients": lambda b: b.linear.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_capture_depends_on(name: str) -> None:
    module = model()
    settings = ModelSettings(module)
    assert settings.are_current(module)
    CHANGES[name](module[1])
    assert not settings.are_current(module)
    assert not settings.are_current(module)
    assert settings.change() is not None
    assert ModelSettings(module).are_current(module)


INSIDE = {
    *("type in a tuple", "tuple of settings", "list in a list", "type in a list", "dictionary", "type in a dictionary"),
    *("set in a dictionary", "object", "list in an object"),
}
"""Changes inside an object, which a compiled call does not notice."""
READ_BY_THE_GRAPH = {"dtype", "shape", "shared", "no bias"}
"""Changes of tensors, which torch.compile guards where a graph reads them."""


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - INSIDE - READ_BY_THE_GRAPH))
def test_what_a_compiled_call_depends_on(name: str) -> None:
    torch.compiler.reset()
    module = model()
    settings = ModelSettings(module)
    compiled = torch.compile(lambda x: x + 1 if settings.are_current(module) else x + 2, backend="eager")
    assert compiled(torch.zeros(())) == 1
    CHANGES[name](module[1])
    assert compiled(torch.zeros(())) == 2


SAME: dict[str, Callable[[Any], Any]] = {
    "values": lambda b: b.linear.weight.data.zero_(),
    "statistics": lambda b: b.norm(torch.rand(4, 3)),
    "gradient": lambda b: setattr(b.linear.weight, "grad", torch.ones(3, 3)),
    "frozen": lambda b: b.requires_grad_(False),
    "assigned": lambda b: b.load_state_dict(Block().state_dict(), assign=True),
    "tensor": lambda b: setattr(b, "mask", torch.zeros(5)),
    "kept result": lambda b: setattr(b, "attention", torch.ones(2)),
    "kept results": lambda b: setattr(b, "seen", (torch.zeros(1), 3)),
    "more results": lambda b: setattr(b, "found", (torch.zeros(1), 3)),
    "results in a list": lambda b: b.results.append(torch.zeros(3)),
    "results in an object": lambda b: setattr(b, "aux", SimpleNamespace(loss=torch.zeros(()))),
    "equal number": lambda b: setattr(b, "number", int("1")),
    "equal tuple": lambda b: setattr(b, "size", tuple(iter((3, 3)))),
    "equal list": lambda b: setattr(b, "rates", [0.1, [1, 2]]),
    "equal object": lambda b: setattr(b, "config", Config()),
    "compiled": lambda b: b.compile(),
}


@pytest.mark.parametrize("name", SAME)
def test_what_it_does_not_depend_on(name: str) -> None:
    module = model()
    settings = ModelSettings(module)
    SAME[name](module[1])
    assert settings.are_current(module)
    assert settings.change() is None
    assert settings.are_current(module)
    module[1].norm.eval()
    assert settings.change() == "1.norm.training"


class Uncomparable(Tensor):
    """A tensor that notes its comparisons by ``==``."""

    compared = 0

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        Uncomparable.compared += 1
        raise AssertionError("tensors were compared")

    __hash__ = Tensor.__hash__


def test_no_tensor_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors in the same places are told by the fast comparison of dictionaries, without a full description."""

    def tensor() -> Tensor:
        return torch.ones(1).as_subclass(Uncomparable)

    module = model()
    block: Any = module[0]
    block.results, block.seen, block.mask = [tensor()], {"a": tensor()}, tensor()
    settings = ModelSettings(module)
    monkeypatch.setattr(settings, "change", lambda: pytest.fail("the settings were described again"))
    for _ in range(2):
        block.results, block.seen, block.mask = [tensor()], {"a": tensor()}, tensor()
        block.linear.weight = nn.Parameter(torch.ones(3, 3))
        assert settings.are_current(module)
    assert Uncomparable.compared == 0


def test_settings_keep_no_replaced_tensor() -> None:
    module = model()
    settings = ModelSettings(module)
    replaced = [weakref.ref(module[0].linear.weight), weakref.ref(module[0].mask), weakref.ref(module[0].seen[0])]
    module[0].linear.weight = nn.Parameter(torch.ones(3, 3))
    module[0].mask = module[0].seen = None  # type: ignore[assignment]
    gc.collect()
    assert [reference() for reference in replaced] == [None] * 3
    assert not settings.are_current(module)


def test_a_module_that_holds_itself() -> None:
    """Cycles are followed once, as by ``modules()``."""
    module: Any = model()
    module[0].again = module
    module[0].rates.append(module[0].rates)
    assert ModelSettings(module).are_current(module)


# plans


class Scaled(nn.Module):
    """A convolution with a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.temperature).mean((2, 3))


def target() -> tlfx.MixedTarget:
    mask = torch.ones(1, 1, 4, 4)
    mask[..., :2] = 0
    return tlfx.MixedTarget(first=torch.tensor([0, 1]), second=torch.tensor([1, 2]), mask=mask, num_classes=4)


def test_a_recapture_names_what_changed(caplog: pytest.LogCaptureFixture) -> None:
    model = tlfx.align(nn.Sequential(Scaled()))
    images = torch.rand(2, 3, 4, 4)
    with caplog.at_level(logging.INFO, "tlfx"):
        model(images, target())
        model[0].temperature = 2.0  # type: ignore[assignment]
        output, _ = model(images, target())
        model(images, target())
        model[0].temperature = 1.0  # type: ignore[assignment]
        model(images, target())
    assert torch.equal(output, model[0].conv(images).mul(2.0).mean((2, 3)))
    assert [r.getMessage() for r in caplog.records if r.name == "tlfx"] == [
        "Sequential is captured for images (2, 3, 4, 4)",
        "Sequential is captured again: 0.temperature has changed",
    ]


@pytest.mark.slow
def test_a_setting_that_changes_at_every_step_is_told_once_and_plans_are_bounded() -> None:
    model = tlfx.align(Scaled())
    images = torch.rand(2, 3, 4, 4)
    kept = []

    def steps() -> None:
        for step in range(MOST_PLANS + 3):
            model.temperature = 1.0 + step
            kept.append(weakref.ref(planner_of(model).plan(model, Call.of(images)).graph_module))
            model.temperature = 1.0  # used again and again, and so kept
            model(images, target())

    with pytest.warns(UserWarning, match=r"Scaled was captured 4 times because temperature .*register_buffer") as told:
        steps()
    assert len(told) == 1
    assert len(planner_of(model).plans) == MOST_PLANS
    gc.collect()
    alive = [reference() is not None for reference in kept]
    assert alive == [True, *[False] * 3, *[True] * (MOST_PLANS - 1)]
