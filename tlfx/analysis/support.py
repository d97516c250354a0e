"""Support: the pixels that the label of an output comes from, against the pixels that the output depends on."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlfx._torch import tree_leaves
from tlfx.aligned import align
from tlfx.analysis.figures import INVARIANTS, Figures, Invariant
from tlfx.analysis.invariants import class_axis, device_of, share, target

__all__ = ["SUPPORT", "Support", "measure_support", "measured"]

SUPPORT = Invariant("extra", "labels come only from pixels that the output depends on", 1e-5)
_IMAGES = 8
"""Images by whose gradients dependence is told: a ReLU or a maximum passes on the gradient of some images only."""


@dataclass(frozen=True)
class Support:
    """How far the labels of outputs and what the outputs depend on disagree, on a grid of cells of the image.

    Attributes:
        extra: the largest share of a label, in [0, 1], that comes from cells that its output does not depend on.
        missing: of the cells that an output depends on, the share that its label does not come from, in [0, 1]. It is
            above 0 where an output depends on a cell through weights, gates or statistics alone, which have no label.
    """

    extra: float
    missing: float


def measured(figures: Figures, support: Support) -> list[tuple[Invariant, float]]:
    """Each invariant with its violation, that of the support of labels last."""
    return [*((i, float(getattr(figures, i.name))) for i in INVARIANTS), (SUPPORT, support.extra)]


def measure_support(
    model: nn.Module, size: tuple[int, ...], seed: int = 0, *, cells: int = 4, positions: int = 12
) -> Support:
    """Measure the support of the labels of a model in evaluation mode, by autograd.

    The model is copied, and random numbers are added to the parameters of the copy: a branch that begins at zero has a
    label, but no influence yet. ``size`` is the size of one image (channels, height, width) or clip (channels, frames,
    height, width), ``cells`` the number of cells along height and width. Of dense outputs ``positions`` are taken.
    Raises TlfxError if the model cannot be aligned.

    >>> measure_support(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1)), (3, 8, 8))
    Support(extra=0.0, missing=0.0)
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        aligned = align(_perturbed(deepcopy(model)).eval())
        image = torch.randn(1, *size, device=device_of(model))
        masks = _cells(size[-2:], cells).to(image.device)
        labels = share(aligned, image.expand(len(masks), *size).contiguous(), masks)  # (cells, positions)
        chosen = torch.linspace(0, labels.shape[1] - 1, min(positions, labels.shape[1])).round().long().unique()
        depends = _dependences(aligned, torch.randn(_IMAGES, *size, device=image.device), masks, chosen.tolist())
        labels = labels[:, chosen].T
    extra = labels.masked_fill(depends, 0.0).sum(1).max()
    missing = (depends & (labels <= SUPPORT.tolerance)).sum() / depends.sum().clamp(min=1)
    return Support(float(extra), float(missing))


def _perturbed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _cells(size: tuple[int, ...], cells: int) -> Tensor:
    """A mask for each cell of a grid, (cells², 1, height, width)."""
    height, width = (min(cells, side) for side in size)
    grid = torch.arange(height * width).view(1, height, width).float()
    places = nn.functional.interpolate(grid[None], size, mode="nearest")[0]
    return torch.stack([(places == i).float() for i in range(height * width)])


def _dependences(aligned: nn.Module, images: Tensor, masks: Tensor, positions: list[int]) -> Tensor:
    """Whether the output at each position depends on each cell, (positions, cells): some gradient is not 0."""
    images.requires_grad_()
    output, soft = aligned(images, target(masks[:1].repeat(len(images), 1, 1, 1)))
    rows = []
    for leaf, label in zip(tree_leaves(output), tree_leaves(soft, is_leaf=lambda x: x is None), strict=True):
        if label is not None:
            values = leaf.movedim(class_axis(label), -1).reshape(len(images), -1, leaf.shape[class_axis(label)])
            rows.append((values.float() * torch.randn(values.shape[2], device=values.device)).sum((0, 2)))
    flat = torch.cat(rows)
    affected = []
    for position in positions:
        (gradient,) = torch.autograd.grad(flat[position], images, retain_graph=True)
        size = gradient.abs().flatten(0, -3).sum(0)
        affected.append(torch.stack([(size * mask[0]).sum() > 0 for mask in masks]))
    return torch.stack(affected)
