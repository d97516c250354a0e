"""Convolutions (Table 10: spatial mixing; a patch embedding is aggregation, a 1x1 kernel channel mixing)."""

from __future__ import annotations

from typing import Any

import torch

from tlfx._torch import overload_name
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule
from tlfx.runtime.kernel_convolution import each

aten = torch.ops.aten

AVERAGE = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
"""Averaging over patches, by the number of axes slid over."""


@rule(aten.conv1d, aten.conv2d, aten.conv3d)
def conv(
    op: OpContext,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """x (batch, in, *size), weight (out, in / groups, *kernel): Y ← Norm(|K|)·Y over valid positions."""
    if op.has_samples_in_groups(x, groups):
        settings = {"stride": stride, "padding": padding, "dilation": dilation}
        return op.convolve_samples(conv, x, weight, groups=groups, **settings)
    kernel = list(weight.shape[2:])
    spatial = len(kernel)
    steps, holes = each(stride, spatial), each(dilation, spatial)
    # conv2d.padding takes a string; a call without one leaves the default of this rule, 0, which means "valid"
    named = overload_name(op.target) == "padding"
    padding = padding or "valid" if named else each(padding, spatial)
    padded = padding != "valid" and (isinstance(padding, str) or any(padding))
    # "same" pads nothing for a kernel of one pixel; numbers add positions without content
    if all(k == 1 for k in kernel) and (not padded or isinstance(padding, str)):
        return op.subsample(x, steps, weight, groups)
    # windows that tile, as those of a patch embedding do: others overlap, leave gaps or cover padding
    if kernel == steps and not padded and all(h == 1 for h in holes) and x.is_content:
        return op.patchify(x, AVERAGE[spatial], weight, steps, padding, holes, groups=groups)
    return op.convolve(x, weight, steps, padding, holes, spatial=spatial, groups=groups)


@rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def conv_transpose(
    op: OpContext,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """x (batch, in, *size), weight (in, out / groups, *kernel): the same by the transposed operator."""
    if op.has_samples_in_groups(x, groups):
        settings = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        return op.convolve_samples(conv_transpose, x, weight, groups=groups, **settings)
    spatial = len(weight.shape) - 2
    steps, padding, extra = (each(s, spatial) for s in (stride, padding, output_padding))
    holes = each(dilation, spatial)
    # aten.conv_transpose takes groups before dilation; the kernel of labels has one channel, and so one group
    return op.convolve(x, weight, steps, padding, extra, 1, holes, spatial=spatial, groups=groups)
