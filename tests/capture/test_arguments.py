"""A call: its images, and the key of what a capture depends on in its arguments."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import mixture, pictures
from torch import Tensor, nn

import tlfx
from tlfx.capture.arguments import Call


def key(images: Tensor | None = None, **kwargs: Any) -> Hashable:
    return Call.of(torch.zeros(2, 3, 4, 4) if images is None else images, **kwargs).key


def test_what_a_capture_depends_on_in_arguments() -> None:
    before = key()
    assert key(torch.ones(7, 3, 4, 4)) == before
    assert hash(key()) == hash(before)
    others = [
        key(torch.zeros(2, 3, 4, 5)),
        key(torch.zeros(2, 3, 4, 4).double()),
        key(torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)),
        key(scale=1),
        key(scale=1.0),
        key(scale=torch.ones(2)),
        key(scale=SimpleNamespace(value=1)),
        key(scale=SimpleNamespace(value=2)),
        key(scale=np.arange(3000)),
        key(scale=np.where(np.arange(3000) == 1000, 0, np.arange(3000))),
    ]
    assert key(scale=SimpleNamespace(value=1)) == key(scale=SimpleNamespace(value=1))
    with torch.autocast("cpu"):
        others.append(key())
    assert len({before, *others}) == len(others) + 1


def test_a_call_of_an_example() -> None:
    images, mask = torch.zeros(2, 3, 4, 4), torch.ones(2)
    assert Call.from_example(images).args == (images,)
    assert Call.from_example([mask, images]).args == (mask, images)
    call = Call.from_example({"mask": mask, "nested": {"images": images, "scale": 2}})
    assert call.args == ()
    assert list(call.kwargs) == ["mask", "nested"]
    assert call.images is images
    assert call.tensors[0] is mask
    assert call.batch == 2


def test_a_call_without_images() -> None:
    with pytest.raises(tlfx.InputError, match=r"no images among the arguments: .* got \(2,\)"):
        Call.of(torch.zeros(2))


class Given(nn.Module):
    """A forward that is given an object beside the images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 4, 4)

    def forward(self, x: Tensor, given: Any = None) -> Tensor:
        y: Tensor = self.stem(x)
        if isinstance(given, list):
            given.append(y.detach())
        elif isinstance(given, dict):
            given["inner"]["y"] = y.detach()
        elif isinstance(given, SimpleNamespace):
            given.y = y.detach()
        else:
            y = y * given.scale
        return y.mean((2, 3))


@dataclass(eq=False)
class Config:
    """An object with a tensor, which is no pytree."""

    scale: Tensor


class Setting:
    """An object that is equal to itself only."""

    def __init__(self) -> None:
        self.scale, self.refers_to = 1.0, print


@pytest.mark.parametrize("make", [list, lambda: {"inner": {}}, SimpleNamespace], ids=["list", "dict", "object"])
def test_a_forward_that_writes_to_its_arguments_is_refused(make: Any) -> None:
    given = make()
    words = r"(?s)Given writes to (a list or dictionary among its arg|an argument of class Simple).*source: .*Return wh"
    with pytest.raises(tlfx.CaptureError, match=words):
        tlfx.align(Given())(pictures(), mixture(), given)
    assert given == make()


def test_an_object_among_the_arguments_is_read_anew() -> None:
    model, given = tlfx.align(Given()), Setting()
    for scale in (1.0, 2.0):
        given.scale = scale
        assert torch.equal(model(pictures(), mixture(), given)[0], model(pictures(), given))


def test_tensors_in_an_object_are_read_anew() -> None:
    model, given = tlfx.align(Given()), Config(torch.ones(1))
    for change in (
        lambda: None,
        lambda: given.scale.fill_(2.0),
        lambda: setattr(given, "scale", torch.full((1,), 3.0)),
    ):
        change()
        assert torch.equal(model(pictures(), mixture(), given)[0], model(pictures(), given))
    other = Config(torch.full((1,), 4.0))
    assert torch.equal(model(pictures(), mixture(), other)[0], model(pictures(), other))
