"""Recurrences, scans and Fourier transforms: uniform over what a position can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tlfx.provenance import Value
from tlfx.rule import rule
from tlfx.verbs import Op

aten = torch.ops.aten


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def recurrent(
    op: Op,
    x: Value,
    state: Any,
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Value]:
    """x (batch, steps, channels) or (steps, batch, channels): one way a scan, both ways uniform over all steps. The
    states (layers, batch, channels) have seen every step."""
    axis = 1 if batch_first else 0
    x = op.reduce(x, -1, keepdim=True)
    seen = op.reduce(x, axis, keepdim=True).map.transpose(0, axis)
    sequence = op.spread(x, [axis]) if bidirectional else op.scan(x, axis)
    return [sequence, *(op.content(seen, shape=shape) for shape in op.shapes[1:])]


@rule(aten.cumsum, aten.cumprod, aten.logcumsumexp)
def cumulative(op: Op, x: Value, dim: int, dtype: Any = None) -> Value:
    """Every position sees those up to it."""
    return op.scan(x, dim)


@rule(aten.cummax, aten.cummin)
def cumulative_extreme(op: Op, x: Value, dim: int) -> list[Value]:
    """Values and indices."""
    return [op.scan(x, dim), op.weight()]


@rule(
    aten.fft_fft,
    aten.fft_ifft,
    aten.fft_rfft,
    aten.fft_irfft,
    aten.fft_hfft,
    aten.fft_ihfft,
)
def fourier(op: Op, x: Value, n: Any = None, dim: int = -1, norm: Any = None) -> Value:
    """Every frequency sees every position of an axis."""
    return op.spread(x, [dim])


@rule(aten.fft_fft2, aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2)
def fourier_2d(op: Op, x: Value, s: Any = None, dim: Sequence[int] = (-2, -1), norm: Any = None) -> Value:
    """Every frequency sees every position of two axes."""
    return op.spread(x, dim)


@rule(aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn)
def fourier_nd(op: Op, x: Value, s: Any = None, dim: Any = None, norm: Any = None) -> Value:
    """Every frequency sees every position of several axes."""
    return op.spread(x, range(1, len(x.shape)) if dim is None else dim)
