"""Spatial mixing by operators that slide over a grid or sample it: run on labels, divided by the same run on ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx.runtime.arithmetic import TINY, averaged, label_arithmetic
from tlfx.runtime.batch_axis import BatchAxis, merge_batch, split_batch
from tlfx.runtime.kernel_convolution import convolve_by_kernel, pool_by_kernel

__all__ = ["by_group", "convolve", "convolve_at", "filtered", "kernel_weights", "resample", "resample_at"]

_BY_CHANNEL = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
_MANY = 2**14
"""Elements of maps from which the CPU convolves them faster as channels."""
_PART = 2**17
"""Weights whose sizes are summed at a time, which fit a CPU cache."""


@label_arithmetic
def convolve(
    operator: Callable[..., Tensor],
    labels: Tensor,
    kernel: Tensor,
    *args: Any,
    valid: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Spatial mixing by a convolution with a ``kernel`` (1, 1, *window) of |K|, or one for each sample (batch, 1, 1,
    *window), normalised over valid positions; on a GPU by one Triton kernel where it can.

    Labels have the shape (batch, lead, *size, channels); ``valid`` (lead, *size) marks the positions with content.
    ``residual`` are labels of a skip path in the shape of the result, which is averaged with them.
    """
    if labels.is_cuda:
        convolved = convolve_by_kernel(operator, labels, kernel, *args, valid=valid, residual=residual)
        if convolved is not None:
            return convolved
    # uniform where all weights are zero
    return averaged(_convolved_labels(operator, labels, kernel + TINY, *args, valid=valid), residual)


def _convolved_labels(
    operator: Callable[..., Tensor], labels: Tensor, kernel: Tensor, *args: Any, valid: Tensor | None
) -> Tensor:
    """The same by the operator itself, for labels and ones."""
    if kernel.dim() < labels.dim():
        return _over_ones(lambda maps: _convolved(operator, maps, kernel, *args), labels, valid)

    def of_sample(label: Tensor, weight: Tensor) -> Tensor:
        return _over_ones(lambda maps: operator(maps, weight, None, *args), label[None], valid)[0]

    each: Tensor = torch.vmap(of_sample)(labels, kernel)
    return each


def _convolved(operator: Callable[..., Tensor], maps: Tensor, kernel: Tensor, *args: Any) -> Tensor:
    """Maps (count, 1, *size) under one kernel; as channels of one image where the CPU is several times faster then."""
    if operator not in _BY_CHANNEL or maps.is_cuda or torch.compiler.is_compiling():
        return operator(maps, kernel, None, *args)
    if maps.numel() < _MANY:
        return _convolved_by_product(operator, maps, kernel, *args)
    count = maps.shape[0]
    # (1, count, *size) under a depthwise kernel: one convolution of one image
    together: Tensor = operator(maps.transpose(0, 1), kernel.expand(count, -1, -1, -1), None, *args, groups=count)
    return together.transpose(0, 1)


def _convolved_by_product(
    operator: Callable[..., Tensor],
    maps: Tensor,
    kernel: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Small maps under one kernel as a matrix product, which starts several times faster than oneDNN's convolution."""
    if isinstance(padding, str) or any(d > 1 for d in dilation):
        return operator(maps, kernel, None, stride, padding, dilation)
    convolved: Tensor = torch.ops.aten.thnn_conv2d.default(maps, kernel, kernel.shape[2:], None, stride, padding)
    return convolved


@label_arithmetic
def kernel_weights(kernel: Tensor, signed: bool = False, count: int | None = None) -> Tensor:
    """|K| of a kernel (out, in, *window), or max(K, 0) if ``signed``, summed over its channels: (1, 1, *window).

    A kernel (batch · ``count``, in, *window) is that of each sample: (batch, 1, 1, *window).
    """
    kernel = kernel if count is None else kernel.unflatten(0, (-1, count))
    return _magnitudes(kernel, (0, 1) if count is None else (1, 2), signed)


def _magnitudes(kernel: Tensor, channels: tuple[int, int], signed: bool) -> Tensor:
    """|K|, or max(K, 0) if ``signed``, summed over channels. On the CPU some rows at a time, in the cache: several
    times as fast as the norm, which is one launch on a GPU."""
    kernel = kernel.float().clamp_min(0) if signed else kernel.float()
    if kernel.is_cuda or torch.compiler.is_compiling():
        total: Tensor = torch.linalg.vector_norm(kernel, 1, channels, keepdim=True)
        return total
    first, second = channels
    rows = max(1, _PART * kernel.shape[0] // max(1, kernel.numel()))
    if first or rows >= kernel.shape[0]:
        # one axis after the other: a sum over both at once is not vectorised
        return kernel.abs().sum(first, keepdim=True).sum(second, keepdim=True)
    parts = [part.abs().sum(first, keepdim=True) for part in kernel.split(rows)]
    return torch.cat(parts).sum(channels, keepdim=True)


@label_arithmetic
def by_group(tensor: Tensor, groups: int, axis: int = 0) -> Tensor:
    """A tensor with the ``axis`` of its groups split: a kernel (groups · out, in, *window) as (groups, out, …)."""
    grouped: Tensor = tensor.unflatten(axis, (groups, -1))
    return grouped


@label_arithmetic
def resample(
    operator: Callable[..., Tensor],
    labels: Tensor,
    *args: Any,
    channel: bool = True,
    valid: Tensor | None = None,
    keeps_ones: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Resampling and pooling: the operator itself run on the label map, divided by itself run on ones, unless it
    ``keeps_ones``, as pooling without padding does; average pools on a GPU by one Triton kernel where it can.
    ``residual`` as in :func:`convolve`."""
    if labels.is_cuda:
        pooled = pool_by_kernel(operator, labels, *args, valid=valid, residual=residual)
        if pooled is not None:
            return pooled
    return averaged(_over_ones(lambda maps: operator(maps, *args), labels, valid, channel, keeps_ones), residual)


@label_arithmetic
def filtered(
    labels: Tensor,
    operator: Callable[..., Tensor],
    filters: Sequence[Tensor],
    shape: Sequence[int],
    lengths: Sequence[int],
    axes: Sequence[int],
    valid: Tensor | None = None,
    signed: bool = False,
) -> Tensor:
    """Spatial mixing by a filter of frequencies, which is a circular convolution: |K| averaged over channels, where
    K is the inverse transform (``operator``) of the product of ``filters``, broadcast to ``shape``."""
    spectrum = torch.ones((), dtype=torch.complex128, device=labels.device)
    for factor in filters:
        spectrum = spectrum * factor
    # fft_ifft takes a length and an axis, fft_ifft2 lists of them
    sizes, dims = (list(lengths), list(axes)) if len(axes) > 1 else (lengths[0], axes[0])
    kernel = operator(spectrum.expand(*shape), sizes, dims)
    kernel = (kernel.real.clamp_min(0) if signed else kernel.abs()) + TINY
    # |K| averaged over channels, then its transform: a product of transforms is a circular convolution
    kernel = kernel.mean([a for a in range(len(shape)) if a not in axes])
    kernel = torch.fft.fftn(kernel.permute([sorted(axes).index(a) for a in axes]))
    places = list(range(-len(axes), 0))

    def run(maps: Tensor) -> Tensor:
        convolved: Tensor = torch.fft.ifftn(torch.fft.fftn(maps, lengths, places) * kernel, dim=places)
        return convolved.real

    return _over_ones(run, labels.double(), valid).float()


@label_arithmetic
def resample_at(
    operator: Callable[..., Tensor], labels: Tensor, places: Tensor, *args: Any, where: BatchAxis
) -> Tensor:
    """Resampling at run-time places (outer · batch · inner, *out, 2 or 3), divided by itself run on ones; uniform where
    it samples nothing. Labels are (batch, outer, inner, *size, channels)."""
    maps, places = merge_batch(labels, where).movedim(-1, 1), places.float()
    over, under = operator(maps, places, *args), operator(torch.ones_like(maps[:, :1]), places, *args)
    return _over_seen(maps, over, under, where)


@label_arithmetic
def convolve_at(
    operator: Callable[..., Tensor],
    labels: Tensor,
    kernel: Tensor,
    places: Tensor,
    modulation: Tensor,
    copies: int,
    *args: Any,
    where: BatchAxis,
    signed: bool = False,
) -> Tensor:
    """Spatial mixing by a convolution at run-time places, over itself run on ones: |K| averaged over channels, times
    |modulation|; uniform where it sees nothing. Each of ``copies`` of the labels has the offsets of a channel group."""
    weight = (kernel_weights(kernel, signed) + TINY).expand(1, copies, -1, -1)
    places, modulation, bias = places.float(), modulation.float().abs(), weight.new_zeros(1)

    def run(maps: Tensor) -> Tensor:
        return operator(maps.expand(-1, copies, -1, -1).contiguous(), weight, places, modulation, bias, *args)

    maps = merge_batch(labels, where).movedim(-1, 1)
    # the kernel has one channel for each group of offsets, so that each label channel runs by itself
    over = torch.cat([run(channel) for channel in maps.split(1, 1)], 1)
    return _over_seen(maps, over, run(torch.ones_like(maps[:, :1])), where)


def _over_seen(maps: Tensor, over: Tensor, under: Tensor, where: BatchAxis) -> Tensor:
    """Quotient of maps (outer · batch · inner, channels, *size) as labels (batch, labels, channels); the mean of the
    maps where nothing is seen."""
    mean = maps.flatten(2).mean(2).view(*maps.shape[:2], *[1] * (over.dim() - 2))
    quotient = torch.where(under > TINY, over / under.clamp_min(TINY), mean).flatten(2).transpose(1, 2)
    return split_batch(quotient, where).flatten(1, 3)


def _over_ones(
    run: Callable[[Tensor], Tensor],
    labels: Tensor,
    valid: Tensor | None,
    channel: bool = True,
    keeps_ones: bool = False,
) -> Tensor:
    """Labels (batch, lead, *size, channels) by an operator that runs on maps, divided by itself run on ones."""
    batch, _, *size, k = labels.shape
    shape = (-1, 1, *size) if channel else (-1, *size)
    maps = labels if k == 1 else labels.movedim(-1, 1)
    if keeps_ones:
        return _as_labels(run(maps.reshape(shape)), batch, k)
    if valid is None:
        ones = labels.new_ones(1, *shape[1:])
    else:
        maps = maps * (valid[..., None] if k == 1 else valid)
        ones = valid.to(labels.dtype).reshape(shape)
    # one run for labels and ones, (batch · channels · lead + ones, 1, *size)
    both, count = run(torch.cat((maps.reshape(shape), ones))), ones.shape[0]
    over, under = both.tensor_split((-count,))
    if count > 1:
        over = over.unflatten(0, (-1, count))
    return _as_labels(over / under.clamp_min(TINY), batch, k)


def _as_labels(maps: Tensor, batch: int, channels: int) -> Tensor:
    """Maps (batch · channels · lead, *size) as labels (batch, lead · size, channels)."""
    return maps.reshape(batch, -1, 1) if channels == 1 else maps.reshape(batch, channels, -1).transpose(1, 2)
