"""Labels under a convolution or a pool in one Triton kernel: sums over labels and over ones, their quotient, and the
average with a skip path.

A program computes up to 128 positions of one sample, weight by weight. Labels are read in place, by their strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tlfx.runtime.arithmetic import TINY
from tlfx.runtime.kernels import device_of, launched, operator, strides

__all__ = ["convolve_labels", "convolve_labels_kernel"]

_TINY = tl.constexpr(TINY)
_ROWS = 128
"""The most positions at a time."""


@triton.jit
def convolve_labels_kernel(
    labels, weight, valid, residual, out,
    blocks, count, depth, height, width, out_depth, out_height, out_width,
    stride_z, stride_y, stride_x, edge_z, edge_y, edge_x, step_z, step_y, step_x,
    l_batch, l_lead, l_z, l_y, l_x, l_channel, w_batch, v_lead, v_z, v_y, v_x, r_batch, r_row, r_channel,
    TAPS: tl.constexpr, WINDOW_Y: tl.constexpr, WINDOW_X: tl.constexpr, CHANNELS: tl.constexpr,
    CHANNEL_BLOCK: tl.constexpr, ROWS: tl.constexpr, WEIGHTED: tl.constexpr, VALID: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Labels of a block of positions (lead, depth, height, width) of one sample; pointers, sizes, strides of the
    convolution, of tensors, then what is compiled in."""
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNEL_BLOCK)
    in_rows, in_channels = row < count, channel < CHANNELS
    # the first position of the window of each
    x = row % out_width * stride_x - edge_x
    y = row // out_width % out_height * stride_y - edge_y
    z = row // (out_width * out_height) % out_depth * stride_z - edge_z
    lead = (row // (out_width * out_height * out_depth)).to(tl.int64)  # offsets may exceed 32 bits
    labels += batch * l_batch
    weight += batch * w_batch

    mass = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, CHANNEL_BLOCK), tl.float32)
    for tap in range(TAPS):
        at_x = x + tap % WINDOW_X * step_x
        at_y = y + tap // WINDOW_X % WINDOW_Y * step_y
        at_z = z + tap // (WINDOW_X * WINDOW_Y) * step_z
        inside = in_rows & (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height) & (at_z >= 0) & (at_z < depth)
        seen = tl.where(inside, 1.0, 0.0)
        if WEIGHTED:  # uniform where all are zero
            seen *= tl.load(weight + tap) + _TINY
        if VALID:
            place = lead * v_lead + at_z * v_z + at_y * v_y + at_x * v_x
            seen *= tl.load(valid + place, mask=inside, other=0.0)
        at = lead * l_lead + at_z.to(tl.int64) * l_z + at_y.to(tl.int64) * l_y + at_x.to(tl.int64) * l_x
        label = tl.load(
            labels + at[:, None] + channel[None, :] * l_channel,
            mask=inside[:, None] & in_channels[None, :],
            other=0.0,
        )
        mass += seen
        mixed += seen[:, None] * label
    mixed = mixed / tl.maximum(mass, _TINY)[:, None]
    written = in_rows[:, None] & in_channels[None, :]
    if RESIDUAL:
        skip = residual + batch * r_batch + row.to(tl.int64)[:, None] * r_row + channel[None, :] * r_channel
        mixed = (mixed + tl.load(skip, mask=written, other=0.0)) * 0.5
    place = (batch * count + row)[:, None] * CHANNELS + channel[None, :]
    tl.store(out + place, mixed, mask=written)


_SCHEMA = (
    "(Tensor labels, Tensor? weight, Tensor? valid, Tensor? residual, SymInt[] out, int[] window, int[] stride, "
    "SymInt[] edge, int[] step) -> Tensor"
)


@operator(_SCHEMA)
def convolve_labels(
    labels: Tensor,
    weight: Tensor | None,
    valid: Tensor | None,
    residual: Tensor | None,
    out: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    edge: Sequence[int],
    step: Sequence[int],
) -> Tensor:
    """Labels (batch, lead · positions, channels), float32, of a convolution with weights ≥ 0.

    Labels (batch, lead, depth, height, width, channels) float32 of any strides, ``weight`` (batch, weights of a
    window) float32, those of a window contiguous, None for equal ones; ``valid`` (lead, depth, height, width) float32,
    1 for positions with content, None if all have. ``out`` is the size of the output, ``edge`` the padding before each
    axis, ``step`` the dilation. ``residual`` (batch, lead · positions, channels) are labels that the result is averaged
    with.
    """
    batch, lead, *size, channels = labels.shape
    count = lead * out[0] * out[1] * out[2]
    mixed = labels.new_empty(batch, count, channels)
    rows = min(_ROWS, triton.next_power_of_2(count))
    blocks = triton.cdiv(count, rows)
    with device_of(labels):
        launched(convolve_labels_kernel)[(batch * blocks,)](
            # a pointer for every operand: those of the labels are not read
            labels, *(labels if x is None else x for x in (weight, valid, residual)), mixed,
            blocks, count, *size, *out, *stride, *edge, *step,
            *labels.stride(), strides(weight, 2)[0], *strides(valid, 4), *strides(residual, 3),
            TAPS=window[0] * window[1] * window[2], WINDOW_Y=window[1], WINDOW_X=window[2], CHANNELS=channels,
            CHANNEL_BLOCK=triton.next_power_of_2(channels), ROWS=rows, WEIGHTED=weight is not None,
            VALID=valid is not None, RESIDUAL=residual is not None, num_warps=4,
        )  # fmt: skip
    return mixed
