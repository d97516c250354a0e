"""Recurrent networks: torch.export runs their operators step by step, which takes minutes for hundreds of tokens. A
capture needs the shapes of their results only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import kernels_replaced

__all__ = ["recurrent_shapes"]

aten = torch.ops.aten


@contextlib.contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Run operators of recurrent networks for the shapes of their results."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(kernels_replaced(aten.lstm.input, _lstm))
        for operator in (aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input):
            stack.enter_context(kernels_replaced(operator, _recurrent))
        yield


def _lstm(x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], *settings: Any) -> tuple[Tensor, ...]:
    # (has_biases, num_layers, dropout, train, bidirectional, batch_first)
    bidirectional = settings[-2]
    return _results(x, hx, params, bidirectional)


def _recurrent(x: Tensor, hx: Tensor, params: Sequence[Tensor], *settings: Any) -> tuple[Tensor, ...]:
    bidirectional = settings[-2]
    return _results(x, [hx], params, bidirectional)


def _results(x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
    """The sequence of outputs, and the last states."""
    channels = states[0].shape[-1] * (2 if bidirectional else 1)
    made = (x.new_empty((*x.shape[:-1], channels)), *map(torch.empty_like, states))
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *params))
    return tuple(t.requires_grad_() for t in made) if learns else made
