"""Common to all label arithmetic: it runs outside autograd and autocast, and normalises by mass."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tlfx._torch import set_grad_mode

__all__ = [
    "TINY",
    "averaged",
    "by_mass",
    "label_arithmetic",
    "magnitude",
    "original_of",
    "outside_autograd",
    "with_mass",
]


P = ParamSpec("P")
R = TypeVar("R")
# negligible next to any mass in float32, whose least normal number is 1.2e-38
TINY = 1e-20
_ORIGINALS: WeakKeyDictionary[Callable[..., Tensor], Callable[..., Tensor]] = WeakKeyDictionary()
"""Functions by what decorates them. An attribute would be copied by functools.wraps to a function around it."""


def label_arithmetic(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function outside autograd and autocast (eq. 12)."""

    @functools.wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return outside_autograd(function, *args, **kwargs)

    _ORIGINALS[outside] = function
    return outside


def original_of(function: Any) -> Callable[..., Tensor] | None:
    """The function that :func:`label_arithmetic` has decorated; None for any other function."""
    return _ORIGINALS.get(function) if inspect.isfunction(function) else None


def outside_autograd(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function outside autograd and autocast, which must be that of the device of its first tensor."""
    device = _device_type(args)
    # torch.compile traces context managers, not the switches
    if torch.compiler.is_compiling():
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(*args, **kwargs)
    # two switches: the context managers cost more than many a label
    gradients, casts = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
    set_grad_mode(False)
    if casts:
        torch.set_autocast_enabled(device, False)
    try:
        return function(*args, **kwargs)
    finally:
        set_grad_mode(gradients)
        if casts:
            torch.set_autocast_enabled(device, True)


def _device_type(args: Sequence[Any]) -> str:
    for value in args:  # a generator would cost as much as a small label
        if isinstance(value, Tensor):
            return value.device.type
    return "cpu"


def averaged(labels: Tensor, residual: Tensor | None) -> Tensor:
    """Labels after a residual connection (eq. 11), if there is one: averaged with those of the skip path."""
    return labels if residual is None else torch.lerp(residual, labels, 0.5)


def magnitude(weight: Tensor, signed: bool = False, vanishes: bool = False) -> Tensor:
    """|W|, or max(W, 0) if ``signed``; uniform where a whole row is zero, unless it may vanish (``vanishes``)."""
    weight = weight.abs() if weight.is_complex() else weight.float()
    size = weight.clamp_min(0) if signed else weight.abs()
    return size if vanishes else size + TINY


def with_mass(labels: Tensor) -> Tensor:
    """Labels with their mass, 1, as a last channel."""
    return torch.cat((labels, labels.new_ones(()).expand(*labels.shape[:-1], 1)), -1)


def by_mass(labels: Tensor, own: Tensor | None = None) -> Tensor:
    """Labels divided by their mass, the last channel; ``own`` (without mass) where there is none."""
    if own is not None:
        # ``own`` decides only where labels have no mass
        labels = torch.add(labels, with_mass(own), alpha=TINY)
    return labels[..., :-1] / labels[..., -1:]
