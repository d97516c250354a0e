"""What an operator truly does: which tokens each row of its outputs depends on, found without any rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["influence"]

_CHANGE = 1e-9
"""Relative change, in float64, from which on an output depends on a pixel."""


def influence(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Which pixels each element of an output depends on: bool (elements, batch, pixels).

    By autograd where the output has a gradient anywhere, else (decisions, operators without a derivative) by what
    changes with a pixel.

    Args:
        run: the output (any shape) from images (batch, channels, 1, pixels), float64; the same at every call.
        images: where to look.
    """
    try:
        found = _slopes(run, images.detach().requires_grad_())
    except RuntimeError:  # no derivative is known; an error of the operator itself comes up below
        found = None
    return found if found is not None and bool(found.any()) else _changes(run, images.detach())


def _slopes(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    out = run(images).flatten()
    found = torch.zeros(len(out), images.shape[0], images.shape[-1], dtype=torch.bool)
    for element, value in enumerate(out if out.requires_grad else ()):
        (slope,) = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)
        if slope is not None:
            found[element] = slope.abs().amax((1, 2)) > 0
    return found


@torch.no_grad()
def _changes(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    before = run(images).flatten()
    found = torch.zeros(len(before), images.shape[0], images.shape[-1], dtype=torch.bool)
    scale = before.abs().amax() + 1
    for sample in range(images.shape[0]):
        for pixel in range(images.shape[-1]):
            other = images.clone()
            other[sample, ..., pixel] = torch.randn_like(other[sample, ..., pixel]) * 3
            found[:, sample, pixel] = (run(other).flatten() - before).abs() > _CHANGE * scale
    return found
