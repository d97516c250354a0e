"""`tlfx.mix.ResizeMix` against the image that it pastes, resized separately."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batches import CLASSES, batch, seeded, shaped
from hypothesis import given, settings
from hypothesis import strategies as st

from tlfx.errors import InputError
from tlfx.mix import ResizeMix


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["batch", "elem", "pair"]),
    dtype=st.sampled_from([torch.float32, torch.uint8, torch.float64, torch.bfloat16]),
    prob=st.sampled_from([0.5, 1.0]),
)
def test_the_box_holds_the_other_image_whole(seed: int, mode: Any, dtype: torch.dtype, prob: float) -> None:
    images, labels = batch(4, 12, 9, seed)
    images = (images * 60 + 128).clamp(0, 255).to(dtype)
    pairing: Any = "mirror" if mode == "pair" else "roll"
    mixer = ResizeMix(num_classes=CLASSES, mode=mode, prob=prob, pairing=pairing, generator=seeded(seed))
    mixed, target = mixer(images, labels)
    assert mixed.dtype == dtype
    for i in range(4):
        source = images[3 - i if mode == "pair" else (i - 1) % 4]
        box = (target.mask[i, 0] == 0).nonzero()
        expected = images[i].clone()
        if len(box):
            (top, left), (bottom, right) = box.amin(0).tolist(), (box.amax(0) + 1).tolist()
            assert len(box) == (bottom - top) * (right - left)
            small = F.interpolate(source[None].double(), (bottom - top, right - left), mode="bilinear", antialias=True)[
                0
            ]
            expected[:, top:bottom, left:right] = (small.round() if dtype == torch.uint8 else small).to(dtype)
        tolerance = {torch.uint8: 1.0, torch.bfloat16: 1.0}.get(dtype, 1e-3)
        torch.testing.assert_close(mixed[i].double(), expected.double(), atol=tolerance, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.integers(1, 20), st.integers(1, 20))
def test_sides_are_those_of_the_scale(seed: int, one: float, other: float, height: int, width: int) -> None:
    low, high = sorted((one, other))
    masks = ResizeMix(scale=(low, high), generator=seeded(seed)).masks(shaped(6, height, width))
    for mask in masks[:, 0]:
        box = (mask == 0).nonzero()
        rows, columns = (box.amax(0) - box.amin(0) + 1).tolist()
        assert len(box) == rows * columns
        for side, length in ((rows, height), (columns, width)):
            assert max(1, int(low * length - 1e-4)) <= side <= max(1, int(high * length + 1e-4))


def test_boxes_lie_anywhere() -> None:
    masks = ResizeMix(scale=(0.5, 0.5), generator=seeded()).masks(shaped(3000, 8, 8))
    tops = (masks[:, 0].amin(2) == 0).int().argmax(1)
    counts = torch.bincount(tops, minlength=5) / 3000
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.03, rtol=0)


@pytest.mark.parametrize("scale", [(0.0, 0.5), (0.5, 0.2), (0.5, 1.5), (0.5,)])
def test_a_scale_that_no_mixing_can_follow(scale: Any) -> None:
    with pytest.raises(InputError, match=r"scale is \(.*\), expected \(low, high\) with 0 < low ≤ high ≤ 1"):
        ResizeMix(scale=scale)
