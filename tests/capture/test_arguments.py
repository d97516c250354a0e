"""A call: its images, and the key of what a capture depends on in its arguments."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
import torch
from torch import Tensor

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
    ]
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
