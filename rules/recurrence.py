"""Recurrences, scans and Fourier transforms: uniform over the positions that a position depends on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from tlfx.errors import ProvenanceError
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.rules import rule

aten = torch.ops.aten


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def recurrent(
    op: OpContext,
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
    initial state (layers, batch, channels), if it has content, is a step before the first; states that are returned
    have seen every step."""
    axis = 1 if batch_first else 0
    if x.is_content and x.batch_axis.axis == axis:
        raise ProvenanceError(
            f"a recurrent layer that is given a value of shape {tuple(x.shape)} runs over the samples of the batch as "
            "over steps; labels belong to one sample each. Pass (batch, steps, channels) to a layer with "
            "batch_first=True, else (steps, batch, channels)."
        )
    before = _initial(op, state if isinstance(state, list | tuple) else [state], axis)
    # one label for each step, of all its channels: the layer mixes them
    inputs = op.step((*x.shape[:2], 1)).reduce(x, -1, keepdim=True) if x.is_content else None
    given = [v for v in (before, inputs) if v is not None]
    if not given:
        return [op.weight(shape=shape) for shape in op.shapes]
    length = sum(v.shape[axis] for v in given)
    steps = op.step([length if a == axis else n for a, n in enumerate((*x.shape[:2], 1))])
    every = steps.join(given, axis)
    sequence = steps.spread(every, [axis]) if bidirectional else steps.scan(every, axis)
    count = x.shape[axis] if x.is_content else 1
    out = op.content(sequence.expanded()[0].narrow(axis, length - count, count))
    seen = steps.step([1 if a == axis else n for a, n in enumerate(steps.shape)]).reduce(every, axis, keepdim=True)
    # states are (layers, batch, channels)
    return [out, *(op.content(seen.map.transpose(0, axis), shape=shape) for shape in op.shapes[1:])]


def _initial(op: OpContext, states: Sequence[Value], axis: int) -> Value | None:
    """The label of an initial state, the average of those of its parts, in the shape of one step."""
    known = [v for v in states if v.is_content]
    if not known:
        return None
    # (layers, batch, channels) → (batch)
    sample = op.step(known[0].shape[1:2])
    label = reduce(sample.residual, [sample.reduce(v, [0, 2]) for v in known])
    return op.remap(label, lambda m: m.view([1 if a == axis else -1 for a in (0, 1)] + [1]))


@rule(aten.gru_cell, aten.lstm_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def cell(op: OpContext, x: Value, state: Any, *params: Any) -> Any:
    """One step: x (batch, channels) and the state before it, averaged."""
    before = state if isinstance(state, list | tuple) else [state]
    token = op.step((*op.shape[:-1], 1))
    seen = [token.reduce(v, -1, keepdim=True) for v in (x, *before) if v.is_content]
    out = op.remap(reduce(token.residual, seen), lambda m: m.expand(op.shape)) if seen else op.weight()
    # lstm_cell returns a hidden and a cell state, the others one state
    return [out] * len(before) if len(before) > 1 else out


@rule(aten.cumsum)
def cumulative_sum(op: OpContext, x: Value, dim: int, dtype: Any = None) -> Value:
    """Every position depends on those up to it; of a product with a factor, Y ← Norm(|w|)·Y."""
    return op.scan(x, dim, linear=True)


@rule(aten.cumprod, aten.logcumsumexp)
def cumulative(op: OpContext, x: Value, dim: int, dtype: Any = None) -> Value:
    """Every position depends on those up to it."""
    return op.scan(x, dim)


@rule(aten.cummax, aten.cummin)
def cumulative_extreme(op: OpContext, x: Value, dim: int) -> list[Value]:
    """Values and indices."""
    return [op.scan(x, dim), op.weight()]


@rule(aten.fft_fft, aten.fft_rfft)
def fourier(op: OpContext, x: Value, n: int | None = None, dim: int = -1, norm: Any = None) -> Value:
    """Every frequency depends on every position of an axis."""
    return op.to_frequencies(x, [dim], None if n is None else [n])


@rule(aten.fft_fft2, aten.fft_rfft2, aten.fft_fftn, aten.fft_rfftn)
def fourier_of_several(
    op: OpContext, x: Value, s: Any = None, dim: Sequence[int] | None = None, norm: Any = None
) -> Value:
    """Every frequency depends on every position of several axes."""
    return op.to_frequencies(x, transformed(op, x, s, dim), s)


@rule(aten.fft_ifft, aten.fft_irfft)
def inverse_fourier(op: OpContext, x: Value, n: int | None = None, dim: int = -1, norm: Any = None) -> Value:
    """Of filtered frequencies a convolution; of any others, every position depends on all frequencies."""
    return op.from_frequencies(x, [dim])


@rule(aten.fft_ifft2, aten.fft_irfft2, aten.fft_ifftn, aten.fft_irfftn)
def inverse_fourier_of_several(
    op: OpContext, x: Value, s: Any = None, dim: Sequence[int] | None = None, norm: Any = None
) -> Value:
    """The same over several axes (global filters)."""
    return op.from_frequencies(x, transformed(op, x, s, dim))


@rule(aten.fft_hfft, aten.fft_ihfft)
def hermitian_fourier(op: OpContext, x: Value, n: Any = None, dim: int = -1, norm: Any = None) -> Value:
    """Every frequency depends on every position of an axis."""
    return op.spread(x, [dim])


def transformed(op: OpContext, x: Value, sizes: Any, axes: Sequence[int] | None) -> Sequence[int]:
    """The axes of a transform: those given, else the last two, or the last few that sizes are given for, or all that
    are not the batch."""
    if axes is not None:
        return axes
    # fft2, rfft2 and their inverses
    if "2" in op.target.overloadpacket.__name__:
        return (-2, -1)
    return range(1, len(x.shape)) if sizes is None else range(len(x.shape) - len(sizes), len(x.shape))
