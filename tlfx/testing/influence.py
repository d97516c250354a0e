"""The dependence of output elements on input tokens, by autograd or perturbation, without any rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["influence"]

_CHANGE = 1e-9
"""Relative change in float64 above which an output depends on a pixel."""


def influence(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The pixels that each element of an output depends on: bool (elements, batch, pixels).

    Uses autograd if any gradient is non-zero; otherwise (comparisons, operators without a derivative) it perturbs each
    pixel and compares the outputs.

    Args:
        run: a deterministic function from images (batch, channels, 1, pixels), float64, to an output of any shape.
        images: the images at which the dependence is measured.
    """
    try:
        depends = _slopes(run, images.detach().requires_grad_())
    except RuntimeError:  # no derivative; an error of the operator itself is raised again by _changes
        depends = None
    return depends if depends is not None and bool(depends.any()) else _changes(run, images.detach())


def _slopes(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    out = run(images).flatten()
    depends = torch.zeros(len(out), images.shape[0], images.shape[-1], dtype=torch.bool)
    for element, value in enumerate(out if out.requires_grad else ()):
        (slope,) = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)
        if slope is not None:
            depends[element] = slope.abs().amax((1, 2)) > 0
    return depends


@torch.no_grad()
def _changes(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    before = run(images).flatten()
    depends = torch.zeros(len(before), images.shape[0], images.shape[-1], dtype=torch.bool)
    scale = before.abs().amax() + 1
    for sample in range(images.shape[0]):
        for pixel in range(images.shape[-1]):
            other = images.clone()
            other[sample, ..., pixel] = torch.randn_like(other[sample, ..., pixel]) * 3
            depends[:, sample, pixel] = (run(other).flatten() - before).abs() > _CHANGE * scale
    return depends
