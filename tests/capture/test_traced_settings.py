"""Settings of compiled models: what changes one of them compiles the call again, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import mixture, pictures, slow_except
from torch import Tensor, nn

import tlfx


class Branch(nn.Module):
    """Reads a number, a list, a function, a submodule and an attribute that it may lack."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.axes = [2, 3]
        self.gate = torch.sigmoid
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.mix(x)) * self.scale
        y = y + self.gate(x.mean(self.axes, keepdim=True))
        return y * 2 if getattr(self, "doubles", False) else y


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), Branch(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "number": lambda branch: setattr(branch, "scale", 3.0),
    "type": lambda branch: setattr(branch, "scale", 1),
    "list": lambda branch: branch.axes.__setitem__(0, 1),
    "function": lambda branch: setattr(branch, "gate", torch.tanh),
    "probability": lambda branch: setattr(branch.drop, "p", 0.0),
    "mode": lambda branch: branch.eval(),
    "new attribute": lambda branch: setattr(branch, "doubles", True),
    "submodule": lambda branch: setattr(branch, "mix", nn.Conv2d(8, 8, 1)),
    "hook": lambda branch: branch.mix.register_forward_hook(lambda module, args, output: output * 2),
}
VALUES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda branch: branch.mix.weight.data.mul_(2.0),
    "replaced": lambda branch: setattr(branch.mix, "weight", nn.Parameter(torch.ones(8, 8, 3, 3))),
}


def compiled_after(change: Callable[[Any], Any]) -> int:
    """Change a compiled model, whose next call must be that of the model that is not compiled; the number of frames
    that this call compiles."""
    torch.compiler.reset()
    model: Any = tlfx.align(network())
    images, target = pictures(), mixture()
    model(images, target)
    compiled: Any = torch.compile(model, backend="eager")
    for _ in range(2):
        compiled(images, target)
    change(model[1])
    before = frames()
    results = []
    for call in (compiled, model):
        torch.manual_seed(0)
        results.append(call(images, target))
    torch.testing.assert_close(*results)
    return frames() - before


def frames() -> int:
    return int(torch._dynamo.utils.counters["frames"]["total"])


@pytest.mark.parametrize("kind", slow_except(("number", "hook"), CHANGES))
def test_a_change_is_seen(kind: str) -> None:
    assert compiled_after(CHANGES[kind]) > 0


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_parameters_are_read_at_each_call(kind: str) -> None:
    assert compiled_after(VALUES[kind]) == 0
