"""The key of a call: what a capture depends on changes it, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tlfx.capture.arguments import key_of


class Block(nn.Module):
    """Attributes of all kinds: numbers, names, tuples of them and of tensors, and tensors."""

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


def model() -> nn.Sequential:
    return nn.Sequential(Block(), Block())


def key(module: nn.Module, images: Tensor | None = None, **kwargs: Any) -> Hashable:
    given = torch.zeros(2, 3, 4, 4) if images is None else images
    return key_of(module, (given,), kwargs, given)


def swap_parts(block: Any) -> None:
    """The same parts under each other's names."""
    del block.norm_again
    block.other = block.norm
    del block.norm


CHANGES: dict[str, Callable[[Any], Any]] = {
    "mode": lambda b: b.norm.eval(),
    "number": lambda b: setattr(b, "number", 2),
    "flag": lambda b: setattr(b, "number", True),
    "name": lambda b: setattr(b, "name", "relu"),
    "none": lambda b: setattr(b, "name", None),
    "tuple": lambda b: setattr(b, "size", (3, 4)),
    "tuple to number": lambda b: setattr(b, "size", 3),
    "tuple of settings": lambda b: setattr(b, "seen", (1, 2)),
    "new setting": lambda b: setattr(b, "scale", 0.5),
    "dtype": lambda b: b.double(),
    "shape": lambda b: setattr(b.linear, "weight", nn.Parameter(torch.ones(5, 3))),
    "no bias": lambda b: setattr(b.linear, "bias", None),
    "buffer": lambda b: b.register_buffer("late", torch.ones(2)),
    "class": lambda b: setattr(b, "linear", nn.Identity()),
    "part": lambda b: b.add_module("late", nn.Identity()),
    "names of parts": swap_parts,
    "hook": lambda b: b.register_forward_hook(lambda *_: None),
    "hook before": lambda b: b.linear.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_capture_depends_on(name: str) -> None:
    module = model()
    before = key(module)
    CHANGES[name](module[1])
    assert key(module) != before


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
}


@pytest.mark.parametrize("name", SAME)
def test_what_it_does_not_depend_on(name: str) -> None:
    module = model()
    before = key(module)
    SAME[name](module[1])
    assert key(module) == before
    assert hash(key(module)) == hash(before)


def test_arguments() -> None:
    module = model()
    before = key(module)
    assert key(module, torch.ones(7, 3, 4, 4)) == before
    others = [
        key(module, torch.zeros(2, 3, 4, 5)),
        key(module, torch.zeros(2, 3, 4, 4).double()),
        key(module, torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)),
        key(module, scale=1),
        key(module, scale=1.0),
        key(module, scale=torch.ones(2)),
    ]
    with torch.autocast("cpu"):
        others.append(key(module))
    assert len({before, *others}) == len(others) + 1


def test_a_module_that_holds_itself() -> None:
    """Cycles are followed once, as by ``modules()``."""
    module = model()
    module[0].again = module
    assert key(module) == key(module)
