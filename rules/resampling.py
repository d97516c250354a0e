"""Resampling: the operator itself run on the label map, divided by itself run on ones."""

from __future__ import annotations

from typing import Any

import torch

from tlfx._torch import overload_name
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(
    aten.upsample_nearest1d,
    aten.upsample_nearest2d,
    aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d,
    aten.upsample_linear1d,
    aten.upsample_bilinear2d,
    aten.upsample_trilinear3d,
    aten._upsample_bilinear2d_aa,
)
def upsample(op: OpContext, x: Value, *settings: Any) -> Value:
    """x (batch, channels, *size)."""
    return op.resample(x, *settings, spatial=len(x.shape) - 2)


@rule(aten.upsample_bicubic2d, aten._upsample_bicubic2d_aa)
def upsample_bicubic(op: OpContext, x: Value, *settings: Any) -> Value:
    """x (batch, channels, height, width): by bilinear weights, which have no negative lobes."""
    smooth = "aa" in str(op.target)
    packet = aten._upsample_bilinear2d_aa if smooth else aten.upsample_bilinear2d
    return op.resample(x, *settings, spatial=2, operator=getattr(packet, overload_name(op.target)))


@rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sampler(op: OpContext, x: Value, grid: Value, mode: int, padding: int, align: bool) -> Value:
    """x (batch, channels, *size), grid (batch, *out, 2 or 3), which may depend on the image."""
    # mode 2 is bicubic, whose weights are negative in places; 0 is bilinear
    bilinear = 0 if mode == 2 else mode
    return op.resample_by_data(x, op.target, grid, bilinear, padding, align, spatial=len(x.shape) - 2)


@rule(aten.affine_grid_generator)
def affine_grid(op: OpContext, theta: Value, size: Any, align: bool) -> Value:
    """theta (batch, 2, 3) or (batch, 3, 4): sampling places, which have no label."""
    return op.weight()


@rule(aten.max_unpool2d, aten.max_unpool3d)
def max_unpool(op: OpContext, x: Value, where: Value, size: Any, *settings: Any) -> Value:
    """x (batch, channels, *size) at the indices of a max pool: every place of a window has the label of the window."""
    spatial = len(x.shape) - 2
    nearest = aten.upsample_nearest2d.vec if spatial == 2 else aten.upsample_nearest3d.vec
    return op.resample(x, list(op.shape[2:]), None, spatial=spatial, operator=nearest)


@rule(aten.col2im)
def col2im(op: OpContext, x: Value, output_size: Any, kernel_size: Any, *settings: Any) -> Value:
    """x (batch, channels · kernel, patches) → (batch, channels, height, width)."""
    return op.overlap_add(x, op.target, kernel_size, output_size, kernel_size, *settings)


@rule("torchvision::deform_conv2d")
def deform_conv2d(
    op: OpContext, x: Value, weight: Value, offset: Value, mask: Value, bias: Value, *settings: Any
) -> Value:
    """x (batch, in, height, width), offset (batch, 2 · groups · kernel, *out): Y ← Norm(|K|)·Y at run-time places."""
    # stride, padding and dilation (two numbers each), groups, groups of offsets, whether there is a modulation
    *steps, _, copies, gated = settings
    # |K| has one output channel, and so one group; labels have one copy for each group of offsets
    return op.convolve_by_data(x, weight, offset, mask, copies, *steps, 1, copies, gated)
