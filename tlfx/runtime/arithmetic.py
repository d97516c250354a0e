"""What all label arithmetic shares: it runs outside autograd, normalises by mass, and knows where a batch lies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

__all__ = ["TINY", "Split", "by_mass", "label_arithmetic", "magnitude", "merge_batch", "split_batch", "with_mass"]


P = ParamSpec("P")
Split = tuple[int, int, int]
"""Where the batch lies in a value: (axis, outer, inner), the axis being of length outer · batch · inner."""

TINY = 1e-20


def label_arithmetic(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function outside autograd and autocast (eq. 12)."""

    @functools.wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = _device_type(args)
        if not torch.is_autocast_enabled(device):  # entering autocast costs more than many a label
            with torch.no_grad():
                return function(*args, **kwargs)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return outside


def _device_type(args: Sequence[Any]) -> str:
    return next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")


def split_batch(value: Tensor, split: Split | None) -> Tensor:
    """Bring the batch of a value to the front; ``split`` is (axis, outer, inner), None for a value without batch."""
    if split is None:
        return value[None]
    axis, outer, inner = split
    if outer == inner == 1:
        return value.movedim(axis, 0)
    parts: Tensor = value.unflatten(axis, (outer, -1, inner))
    return parts.movedim(axis + 1, 0)


def merge_batch(rows: Tensor, split: Split) -> Tensor:
    """The inverse: the batch of labels (batch, *shape, channels) where the value has it; channels stay last."""
    axis = split[0]
    merged: Tensor = rows.movedim(0, axis + 1)
    return merged.flatten(axis, axis + 2)


def magnitude(weight: Tensor, signed: bool = False) -> Tensor:
    """|W|, or max(W, 0) if ``signed``; uniform where a whole row is zero, so that rows always sum to 1."""
    weight = weight.float()
    return (weight.clamp_min(0) if signed else weight.abs()) + TINY


def with_mass(rows: Tensor) -> Tensor:
    """Rows with their mass, 1, as a last channel."""
    return torch.cat((rows, rows.new_ones(()).expand(*rows.shape[:-1], 1)), -1)


def by_mass(rows: Tensor) -> Tensor:
    """Rows over their mass, the last channel."""
    return rows[..., :-1] / rows[..., -1:]
