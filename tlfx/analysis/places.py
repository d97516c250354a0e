"""Positions of tokens on the image, derived from the label arithmetic, without knowledge of the model.

Mixing moves content between tokens, but a token keeps the position of the pixels that it was made from. The position of
a patch is the centre of its pixels, that of a merged token the centre of the merged tokens. The output of attention has
the position of its query; the output of other token mixing has the position of the skip connection that it is added
to. Class and register tokens have no position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx import runtime
from tlfx.propagate.labels import LabelTable, LabelTensor
from tlfx.propagate.maps import find_batch_axis, ids_of_sample
from tlfx.propagate.values import Value

__all__ = ["centres", "grid"]

SLIDING: tuple[Callable[..., Tensor], ...] = (
    runtime.convolve,
    runtime.convolve_at,
    runtime.filtered,
    runtime.resample,
    runtime.resample_at,
)
"""Label functions whose labels form a grid that covers the grid of their inputs."""
TOLERANCE = 1e-6


def centres(table: LabelTable, values: Mapping[Node, Any]) -> Tensor:
    """Position (y, x) of every label id on an image of side 1, float64 (ids, 2); NaN for labels without a position.

    ``values`` are the values of the graph's nodes, in which the queries of attention are looked up.

    >>> table = LabelTable()
    >>> ids = table.add(runtime.pixels, shape=(2, 2))
    >>> centres(table, {}).tolist()
    [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    """
    positions = torch.full((table.size, 2), torch.nan, dtype=torch.float64)
    for label in table.tensors:
        inside = slice(label.first, label.first + label.size)
        if label.function is runtime.pixels:
            positions[inside] = _covering(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), label.shape[-2:]).flatten(
                0, 1
            )
        elif label.function in SLIDING:
            positions[inside] = _slid(label, positions)
        elif label.elementwise:
            positions[inside] = _met(label, positions)
        elif label.query_axis is not None:
            positions[inside] = _queried(label, positions, values)
    return positions


def _covering(corners: Tensor, size: Sequence[int]) -> Tensor:
    """Centres (height, width, 2) of the cells of a grid between two corners (2, 2)."""
    low, high = corners
    axes = [low[i] + (torch.arange(n).double() + 0.5) / n * (high[i] - low[i]) for i, n in enumerate(size)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _slid(label: LabelTensor, positions: Tensor) -> Tensor:
    """For each input map, a grid of another size on the same region of the image."""
    ids = label.operands[0].ids
    size, maps = label.shape[-2:], ids.reshape(-1, *ids.shape[-2:])
    if ids.dim() < 2 or len(label.shape) < 2 or len(maps) * torch.Size(size).numel() != label.size:
        return torch.full((label.size, 2), torch.nan, dtype=torch.float64)
    return torch.cat([_covering(_corners(positions[m]), size).flatten(0, 1) for m in maps])


def _corners(places: Tensor) -> Tensor:
    """Upper left and lower right corner of a grid of centres (height, width, 2), half a cell beyond the outermost."""
    known = places[~places.isnan().any(-1)]
    if not len(known):
        return torch.full((2, 2), torch.nan, dtype=torch.float64)
    first, last = known.aminmax(dim=0)
    counts = torch.tensor(places.shape[:2], dtype=torch.float64)
    # a grid of one row or column reaches to the nearer border of the image
    half = torch.where(counts > 1, (last - first) / (counts - 1) / 2, torch.minimum(first, 1 - last))
    return torch.stack((first - half, last + half))


def _queried(label: LabelTensor, positions: Tensor, values: Mapping[Node, Any]) -> Tensor:
    """The output of attention has the positions of its queries.

    The queries are among the values that the label reads, or the mixing weights carry their map.
    """
    held = [v for v in map(values.get, label.nodes) if isinstance(v, Value)]
    for value, content in ((v, m) for v in held for m in v.maps):
        ids = ids_of_sample(content, value.batch, find_batch_axis(content, value.batch))
        if ids.numel() == label.size and bool((ids >= 0).all()):
            return positions[ids.flatten()]
    return torch.full((label.size, 2), torch.nan, dtype=torch.float64)


def _met(label: LabelTensor, positions: Tensor) -> Tensor:
    """The mean position of averaged labels; for a sum, the position of the first summand that has one.

    Summands without a position (outputs of token mixing) get this position too.
    """
    operands = [operand.ids.reshape(label.size, -1) for operand in label.operands]
    place = positions[operands[0]].nanmean(1)
    for ids in operands[1:]:
        place = torch.where(place.isnan(), positions[ids].nanmean(1), place)
    for ids in (ids[:, 0] for ids in operands if ids.shape[1] == 1):
        positions[ids] = torch.where(positions[ids].isnan(), place, positions[ids])
    return place


def grid(places: Tensor) -> Tensor | None:
    """Indices of the tokens at ``places`` (tokens, 2) as a grid: int64 (height, width), None if they form no full grid.

    Tokens without a position are ignored.

    >>> grid(torch.tensor([[torch.nan, torch.nan], [0.5, 0.75], [0.5, 0.25]]))
    tensor([[2, 1]])
    """
    known = (~places.isnan().any(1)).nonzero().flatten()
    if not len(known):
        return None
    (rows, height), (columns, width) = (_ranks(places[known, axis]) for axis in (0, 1))
    cell = rows * width + columns
    if len(known) != height * width or len(cell.unique()) != len(cell):
        return None
    return known[cell.argsort()].view(height, width)


def _ranks(values: Tensor) -> tuple[Tensor, int]:
    """Rank of each value among the distinct values, and their number; values within rounding error are equal."""
    ordered, order = values.sort()
    steps = torch.cat((torch.zeros(1, dtype=torch.int64), (ordered.diff() > TOLERANCE).long())).cumsum(0)
    return torch.empty_like(order).scatter_(0, order, steps), int(steps[-1]) + 1
