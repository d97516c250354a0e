"""Presence over depth: the contribution of each input token to the tokens of a layer, through all layers before it."""

from __future__ import annotations

import torch
from torch import Tensor

from tlfx.analysis.presence import chunks
from tlfx.analysis.probe import Probe

__all__ = ["FADED", "faded", "input_cells", "presence_over_depth"]

FADED = 0.1
"""Input tokens with a smaller presence count as faded."""
LARGEST = 56
"""Maximum number of cells along each axis; larger grids of input tokens are pooled."""


def presence_over_depth(probe: Probe, image: Tensor) -> list[Tensor]:
    """Presence of each input token z in each layer, then in the output: float32 (tokens,) with mean 1 for each.

    This measure continues eq. 2, which is about a single operation (:func:`tlfx.analysis.presence.spatial_presence`),
    over all operations before a layer. The labels of layer l are a matrix M times the labels of the input tokens,
    where rows of M sum to 1. The presence of input token z is the sum of column z of M, divided by the number of tokens
    of layer l and multiplied by the number of input tokens: it is 1 for all z if all input tokens contribute equally to
    layer l, and 0 for a token that contributes nothing. By linearity, the columns of M are the labels of one-hot masks,
    so that every operation counts as in the aligned target. All tokens of a layer count, including a class token; at
    the output, only the tokens that the classifier reads.

    Args:
        probe: the model with the layers to measure.
        image: floating (channels, height, width), normalised as the model expects.

    Input tokens are cells of the image with the size of the tokens of the first layer; if the first layer has more than
    56 tokens along an axis, 56 cells.

    >>> from torch import nn
    >>> pool = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AvgPool2d((1, 2), (1, 1)))
    >>> presence_over_depth(Probe(pool, (3, 4, 12)), torch.rand(3, 4, 12))[1]
    tensor([0.7500, 1.5000, 0.7500])
    """
    size = input_cells(probe)
    rows, columns = (_cell_of_pixel(n, pixels) for n, pixels in zip(size, image.shape[-2:], strict=True))
    areas = torch.outer(_shares(rows, size[0]), _shares(columns, size[1])).flatten()
    columns_of_m: list[list[Tensor]] = []
    for cells in chunks(areas.numel()):
        # (images, channels, height, width): the mask of one cell in each channel
        inside = (rows == cells[..., None] // size[1])[..., :, None] & (columns == cells[..., None] % size[1])[
            ..., None, :
        ]
        readings, arrival = probe(image.expand(len(cells), *image.shape), inside.float())
        labels = [reading.labels.mean(1) for reading in readings] + [arrival.label]
        columns_of_m.append([x.flatten()[: int((cells < areas.numel()).sum())] for x in labels])
    return [torch.cat(parts) / areas for parts in zip(*columns_of_m, strict=True)]


def input_cells(probe: Probe) -> tuple[int, int]:
    """Number of rows and columns of the cells that represent the input tokens."""
    height, width = probe.layers[0].size
    return min(height, LARGEST), min(width, LARGEST)


def faded(present: Tensor) -> float:
    """Fraction of input tokens with a presence below 0.1.

    >>> faded(torch.tensor([0.05, 0.2, 1.0, 2.75]))
    0.25
    """
    return float((present < FADED).float().mean())


def _cell_of_pixel(cells: int, pixels: int) -> Tensor:
    return torch.arange(pixels) * cells // pixels


def _shares(cell: Tensor, count: int) -> Tensor:
    """Fraction of the pixels of an axis in each cell."""
    return torch.bincount(cell, minlength=count).float() / len(cell)
