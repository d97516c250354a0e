"""Pooling: uniform over the valid positions of each window (Table 10: aggregation)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_harness import Probe, check, several, squeezed
from torch import Tensor, nn

from tlfx import Operation
from tlfx.propagate.values import Role

SIZES = {1: (1, 11), 2: (6, 7), 3: (3, 4, 5)}
"""Images of the sizes that are slid over; a sequence is an image of one row."""
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def span(extent: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    """The valid places of each window along one axis."""
    starts = [i * stride - padding for i in range(count)]
    return [[p for p in range(s, s + dilation * (kernel - 1) + 1, dilation) if 0 <= p < extent] for s in starts]


def uniform(y: Tensor, spans: list[list[list[int]]]) -> Tensor:
    """The mean over each window, (batch, channels, *size) to (batch, channels, *out)."""
    out = y.new_empty(*y.shape[:2], *map(len, spans))
    for place in product(*(range(len(s)) for s in spans)):
        seen = product(*(s[i] for s, i in zip(spans, place, strict=True)))
        of_each: Any = (slice(None), slice(None))
        chosen = [y[of_each + p] for p in seen]
        out[of_each + place] = sum(chosen) / len(chosen)
    return out


def pooled(y: Tensor, out: tuple[int, ...], kernel: int, stride: int, padding: int, dilation: int = 1) -> Tensor:
    """Uniform over the windows of a pool of known output size."""
    return uniform(y, [span(n, c, kernel, stride, padding, dilation) for n, c in zip(y.shape[2:], out, strict=True)])


@several(15)
@given(
    st.sampled_from([1, 2, 2, 3]),
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.booleans(),
    st.booleans(),
)
def test_average_pool(
    spatial: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool
) -> None:
    """Padding carries no label, whether or not the operator counts it."""
    assume(spatial > 1 or kernel > 1)
    options: dict[str, Any] = {"padding": padding, "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}

    def function(x: Tensor) -> Tensor:
        return AVERAGE[spatial](squeezed(x, spatial), kernel, stride, **options)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return pooled(squeezed(y, spatial), function(x).shape[2:], kernel, stride, padding)

    same = (
        function(torch.zeros(1, 2, *SIZES[spatial])).shape[2:]
        == squeezed(torch.zeros(1, 2, *SIZES[spatial]), spatial).shape[2:]
    )
    expected = Operation.SPATIAL_MIX if same else Operation.AGGREGATION
    check(function, twin, (2, *SIZES[spatial]), {f"avg_pool{spatial}d": expected})


@several(20)
@given(
    st.sampled_from([1, 2, 2, 3]),
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(1, 2),
    st.booleans(),
)
def test_max_pool(spatial: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> None:
    """Any position of a window may be the largest: uniform."""
    assume(min(squeezed(torch.zeros(1, 1, *SIZES[spatial]), spatial).shape[2:]) + 2 * padding > dilation * (kernel - 1))

    def function(x: Tensor) -> Tensor:
        return LARGEST[spatial](squeezed(x, spatial), kernel, stride, padding, dilation, ceil_mode)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return pooled(squeezed(y, spatial), function(x).shape[2:], kernel, stride, padding, dilation)

    check(function, twin, (2, *SIZES[spatial]))


def test_dilated_windows_rounded_up() -> None:
    """A last window that begins inside the image and ends outside it."""
    check(
        lambda x: F.max_pool2d(x, 3, 2, dilation=2, ceil_mode=True),
        lambda y, x: pooled(y, (2, 2), 3, 2, 0, 2),
        (2, 6, 7),
        {"max_pool2d": Operation.AGGREGATION},
    )


def test_default_stride_is_the_kernel() -> None:
    check(
        lambda x: F.max_pool2d(x, 2), lambda y, x: F.avg_pool2d(y, 2), (2, 4, 6), {"max_pool2d": Operation.AGGREGATION}
    )
    check(
        lambda x: F.avg_pool2d(x, 2), lambda y, x: F.avg_pool2d(y, 2), (2, 4, 6), {"avg_pool2d": Operation.AGGREGATION}
    )
    check(lambda x: F.max_pool2d(x, 2, dilation=2), lambda y, x: pooled(y, (1, 2), 2, 2, 0, 2), (2, 4, 6))


def test_kernels_that_are_not_square() -> None:
    def twin(y: Tensor, x: Tensor) -> Tensor:
        return uniform(y, [span(6, 2, 3, 3, 0, 1), span(7, 7, 2, 1, 1, 1)[:7]])

    check(lambda x: F.avg_pool2d(x, (3, 2), (3, 1), (0, 1))[..., :7], twin, (2, 6, 7))
    check(lambda x: F.max_pool2d(x, (3, 2), (3, 1), (0, 1))[..., :7], twin, (2, 6, 7))


def test_divisor_does_not_count() -> None:
    check(lambda x: F.avg_pool2d(x, 2, divisor_override=3), lambda y, x: F.avg_pool2d(y, 2), (2, 4, 6))


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_indices_of_the_largest(spatial: int) -> None:
    """Where the largest lies is a decision."""

    def function(x: Tensor) -> Any:
        return LARGEST[spatial](squeezed(x, spatial), 2, return_indices=True)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return AVERAGE[spatial](squeezed(y, spatial), 2)

    probe = check(function, twin, (2, *(2 * n for n in SIZES[spatial])) if spatial > 1 else (2, 1, 12))
    assert probe.roles == [Role.CONTENT, Role.WEIGHT]


@several(12)
@given(st.sampled_from([1, 2, 2, 3]), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_adaptive_pool(spatial: int, one: int, other: int, largest: bool) -> None:
    """Windows from floor(i·n/m) to ceil((i + 1)·n/m), also where m does not divide n."""
    out = {1: (one,), 2: (one, other), 3: (2, one, other)}[spatial]
    pools: dict[bool, dict[int, Callable[..., Tensor]]] = {
        True: {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
        False: {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
    }

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = squeezed(y, spatial)
        sizes = zip(rows.shape[2:], out, strict=True)
        return uniform(rows, [[list(range(i * n // m, ceil((i + 1) * n / m))) for i in range(m)] for n, m in sizes])

    check(lambda x: pools[largest][spatial](squeezed(x, spatial), out), twin, (2, *SIZES[spatial]))


@pytest.mark.parametrize("size", [1, (None, 1), (2, None)])
def test_adaptive_pool_to_part_of_the_size(size: Any) -> None:
    """None keeps an axis."""
    check(
        lambda x, pool: pool(x),
        lambda y, x: F.adaptive_avg_pool2d(y, size),
        (2, 4, 6),
        {"adaptive_avg_pool2d": Operation.AGGREGATION},
        pool=nn.AdaptiveAvgPool2d(size),
    )


def test_a_pool_that_keeps_the_grid_mixes_tokens() -> None:
    """PoolFormer: average pooling as the token mixer."""
    check(
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x,
        lambda y, x: (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) + y) / 2,
        (2, 4, 6),
        {"avg_pool2d": Operation.SPATIAL_MIX, "sub": Operation.RESIDUAL},
    )


def test_pooling_over_tokens_merged_with_the_batch() -> None:
    """Each row of the map is a separate sequence."""

    def cut(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    check(lambda x: F.max_pool1d(cut(x), 2), lambda y, x: F.avg_pool1d(cut(y), 2), (2, 4, 6))


def test_pooling_over_channels_leaves_labels() -> None:
    """A sequence of channels for each token (attention over channels)."""

    def cut(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2)

    check(lambda x: F.avg_pool1d(cut(x), 2), lambda y, x: cut(y)[..., :2], (4, 4, 6))


def test_pooling_of_content_beside_padding() -> None:
    """Zeros padded before the pool do not count."""
    check(
        lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2),
        lambda y, x: F.avg_pool2d(y, 2, ceil_mode=True),
        (2, 3, 5),
    )


def test_blur_pool() -> None:
    """Reflection padding and a fixed depthwise kernel: spatial mixing by the kernel."""
    kernel = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16

    def function(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel.expand(4, 1, 3, 3), stride=2, groups=4)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return function(y, kernel.double())

    check(function, twin, (4, 4, 6), {"conv2d": Operation.SPATIAL_MIX}, kernel=kernel)


def test_power_average_pool() -> None:
    """The root of pooled powers is pooled like them."""
    check(lambda x, pool: pool(x.abs()), lambda y, x: F.avg_pool2d(y, 2), (2, 4, 6), pool=nn.LPPool2d(2, 2))


def test_pools_of_weights_are_weights() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x.flatten(2).transpose(1, 2) @ x.flatten(2)
        return x, F.avg_pool2d(scores.unsqueeze(1), 2)

    assert Probe(function, (4, 4, 6)).roles == [Role.CONTENT, Role.WEIGHT]


def test_max_pool_of_a_clip_shorter_than_its_kernel() -> None:
    """Padded to fit (the branches of S3D); averaging over three axes would refuse it."""
    check(
        lambda x: F.max_pool3d(x, 3, 1, 1),
        lambda y, x: pooled(y, (2, 2, 4), 3, 1, 1),
        (2, 2, 2, 4),
        {"max_pool3d": Operation.SPATIAL_MIX},
    )
