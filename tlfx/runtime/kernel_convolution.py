"""Convolutions as the Triton kernel takes them: over three axes, with the padding before each in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tlfx.runtime.kernels import MOST_CHANNELS, kernel

__all__ = ["convolve_by_kernel"]

aten = torch.ops.aten
_OPERATORS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)


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
    convolved = kernel("convolve_labels")
    if convolved is None or operator not in _OPERATORS or not _is_supported(labels, weight):
        return None
    size, window = labels.shape[2:-1], weight.shape[-(labels.dim() - 3) :]
    stride, dilation = (list(given) or [1] * len(size) for given in (stride, dilation))
    reach = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]
    # "same" pads as many positions as the window reaches, the odd one at the end
    both = _padded(padding, reach)
    out = [(n + b - r - 1) // s + 1 for n, b, r, s in zip(size, both, reach, stride, strict=True)]
    # axes that are missing come before the others
    axes = [1] * (3 - len(size))
    maps = labels.unflatten(1, (-1, *axes))
    seen = None if valid is None else valid.unflatten(0, (-1, *axes))
    weights = weight.reshape(-1, window.numel())
    if residual is not None:
        residual = residual.expand(len(labels), -1, -1)
    edges = [*[0] * len(axes), *(b // 2 for b in both)]
    sizes = ([*axes, *given] for given in (out, window, stride))
    return convolved(maps, weights, seen, residual, *sizes, edges, [*axes, *dilation])


def _padded(padding: Sequence[int] | str, reach: Sequence[int]) -> list[int]:
    """The positions that each axis is padded by, on both sides together."""
    if isinstance(padding, str):
        return list(reach) if padding == "same" else [0] * len(reach)
    return [2 * p for p in padding] or [0] * len(reach)


def _is_supported(labels: Tensor, weight: Tensor) -> bool:
    same = labels.device == weight.device and labels.dtype == weight.dtype == torch.float32
    return same and labels.dim() <= 6 and labels.shape[-1] <= MOST_CHANNELS
