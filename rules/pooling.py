"""Pooling: uniform over valid positions (Table 10: aggregation)."""

from __future__ import annotations

from typing import Any

import torch

from tlfx.propagate.maps import NONE
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule
from tlfx.runtime.kernel_convolution import each

from .convolution import AVERAGE

aten = torch.ops.aten

ADAPTIVE = {
    1: aten.adaptive_avg_pool1d.default,
    2: aten.adaptive_avg_pool2d.default,
    3: aten.adaptive_avg_pool3d.default,
}
CONVOLUTION = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


@rule(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def avg_pool(op: OpContext, x: Value, kernel_size: Any, *settings: Any) -> Value:
    """x (batch, channels, *size): the mean of each window."""
    # without count_include_pad and divisor_override: a divisor cancels when labels are divided by the pool of ones
    return op.pool(x, op.target, kernel_size, *settings[:3], spatial=_spatial(op), linear=True)


@rule(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)
def max_pool(
    op: OpContext,
    x: Value,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    """x (batch, channels, *size): any position of a window may be the largest, so all count alike."""
    spatial = _spatial(op)
    # an empty stride, torch's default, stands for the size of the kernel
    size, steps, edges, holes = (each(s, spatial) for s in (kernel_size, stride or kernel_size, padding, dilation))
    beyond = any(n < k for n, k in zip(x.shape[-spatial:], size, strict=True))  # which averaging in three axes refuses
    if beyond or holes != [1] * spatial:
        # avg_pool has no dilation: a convolution with ones counts the positions of a window
        x, ones = lengthened(op, x, size, steps, edges, holes), torch.ones(1, 1, *size)
        return op.pool(x, CONVOLUTION[spatial], ones, None, steps, edges, holes, spatial=spatial)
    return op.pool(
        x, AVERAGE[spatial], kernel_size, list(stride) if stride != () else [], padding, ceil_mode, spatial=spatial
    )


@rule(aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
def max_pool_with_indices(op: OpContext, x: Value, kernel_size: Any, *settings: Any) -> list[Value]:
    """The same, and the indices of the maxima."""
    return [max_pool(op, x, kernel_size, *settings), op.weight()]


@rule(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d)
def adaptive_avg_pool(op: OpContext, x: Value, output_size: Any) -> Value:
    """x (batch, channels, *size): the mean of each window, windows chosen by the output size."""
    return op.pool(x, op.target, output_size, spatial=_spatial(op), linear=True)


@rule(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
def adaptive_max_pool(op: OpContext, x: Value, output_size: Any) -> list[Value]:
    """x (batch, channels, *size): values and indices; uniform over each window."""
    spatial = _spatial(op)
    return [op.pool(x, ADAPTIVE[spatial], output_size, spatial=spatial), op.weight()]


def lengthened(op: OpContext, x: Value, size: list[int], steps: list[int], edges: list[int], holes: list[int]) -> Value:
    """x with elements without content appended, where ceil_mode takes the last window beyond its end."""
    counts = op.shape[-len(size) :]
    spans = [(o - 1) * s + h * (k - 1) + 1 for o, s, h, k in zip(counts, steps, holes, size, strict=True)]
    ends = [max(0, span - n - 2 * e) for span, n, e in zip(spans, x.shape[-len(size) :], edges, strict=True)]
    # F.pad takes the last axis first
    pad = [side for end in reversed(ends) for side in (0, end)]
    return op.remap(x, lambda m: torch.nn.functional.pad(m, pad, value=NONE)) if any(pad) else x


def _spatial(op: OpContext) -> int:
    """Number of axes slid over, by the operator's name: the digit before its d."""
    name = op.target.overloadpacket.__name__
    return next(n for n in (1, 2, 3) if f"{n}d" in name)
