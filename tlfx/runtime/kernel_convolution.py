"""Convolutions and pools as the Triton kernel takes them: over three axes, with the padding before each in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tlfx.runtime.kernels import MOST_CHANNELS, kernel

__all__ = ["convolve_by_kernel", "each", "pool_by_kernel"]

aten = torch.ops.aten
_CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)
_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)


def convolve_by_kernel(
    operator: Callable[..., Tensor],
    labels: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (),
    padding: Sequence[int] | str = (),
    dilation: Sequence[int] = (),
    *,
    valid: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor | None:
    """As :func:`tlfx.runtime.convolve`, by one kernel; None where there is none: without Triton, for a transposed
    convolution, for more than 16 label channels or labels of another type than float32."""
    if operator not in _CONVOLUTIONS or weight.device != labels.device or weight.dtype != torch.float32:
        return None
    size, window = labels.shape[2:-1], weight.shape[-(labels.dim() - 3) :]
    stride, dilation = (list(given) or [1] * len(size) for given in (stride, dilation))
    reach = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
    # "same" pads as many positions as the window reaches, the odd one at the end
    both = _padded(padding, reach)
    out = [(n + b - r - 1) // s + 1 for n, b, r, s in zip(size, both, reach, stride, strict=True)]
    weights = weight.reshape(-1, window.numel()).expand(len(labels), -1)
    return _slide(labels, weights, out, window, stride, [b // 2 for b in both], dilation, valid, residual)


def pool_by_kernel(
    operator: Callable[..., Tensor],
    labels: Tensor,
    window: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    *,
    valid: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor | None:
    """As :func:`tlfx.runtime.resample` of an average pool, by one kernel; None where there is none: for other
    operators, and as :func:`convolve_by_kernel`."""
    if operator not in _POOLS:
        return None
    size = labels.shape[2:-1]
    window = each(window, len(size))
    # without a stride, windows do not overlap
    stride, padding = each(stride, len(size)) or window, each(padding, len(size))
    out = []
    for n, k, s, p in zip(size, window, stride, padding, strict=True):
        count = (n + 2 * p - k + (s - 1 if ceil_mode else 0)) // s + 1
        # the last window begins inside of the map or of the padding before it
        out.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
    return _slide(labels, None, out, window, stride, padding, [1] * len(size), valid, residual)


def _slide(
    labels: Tensor,
    weights: Tensor | None,
    out: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    edge: Sequence[int],
    step: Sequence[int],
    valid: Tensor | None,
    residual: Tensor | None,
) -> Tensor | None:
    """Labels (batch, lead, *size, channels) by the kernel, None where there is none."""
    convolved = kernel("convolve_labels")
    missing = 3 - (labels.dim() - 3)
    if convolved is None or missing < 0 or labels.dtype != torch.float32 or labels.shape[-1] > MOST_CHANNELS:
        return None
    # axes that are missing come before the others
    axes = [1] * missing
    maps = labels.unflatten(1, (-1, *axes))
    seen = None if valid is None else valid.unflatten(0, (-1, *axes))
    if residual is not None:
        residual = residual.expand(len(labels), -1, -1)
    sizes = ([*axes, *given] for given in (out, window, stride))
    return convolved(maps, weights, seen, residual, *sizes, [*[0] * missing, *edge], [*axes, *step])


def each(setting: int | Sequence[int], count: int) -> list[int]:
    """A setting spelled out for each axis."""
    if isinstance(setting, int):
        return [setting] * count
    return list(setting) * count if len(setting) == 1 else list(setting)


def _padded(padding: Sequence[int] | str, reach: Sequence[int]) -> list[int]:
    """The positions that each axis is padded by, on both sides together."""
    if isinstance(padding, str):
        return list(reach) if padding == "same" else [0] * len(reach)
    return [2 * p for p in padding] or [0] * len(reach)
