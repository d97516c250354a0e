"""Where tokens lie on the image: derived from how labels are made, so that no model need be known.

Mixing moves content, not tokens; a token stays where the pixels were that it was made of. So a patch lies at the centre
of its pixels, a merged token at the centre of what was merged, what comes out of attention where its query does, and
what comes out of other mixing where the skip path beside it does. Class and register tokens lie nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx import runtime
from tlfx.propagate.labels import LabelTable, LabelTensor
from tlfx.propagate.values import Value, find_batch_axis, ids_of_sample

__all__ = ["centres", "grid"]

SLIDING: tuple[Callable[..., Tensor], ...] = (
    runtime.convolve,
    runtime.convolve_at,
    runtime.filtered,
    runtime.resample,
    runtime.resample_at,
)
"""LabelTensor functions whose rows form a grid that covers the grid they are made from."""
TOLERANCE = 1e-6


def centres(table: LabelTable, values: Mapping[Node, Any]) -> Tensor:
    """Centre (y, x) of every label row on an image of side 1, float64 (rows, 2); NaN for rows that lie nowhere.

    ``values`` are those of the graph's nodes, in which the queries of attention are looked up.

    >>> table = LabelTable()
    >>> ids = table.add(runtime.pixels, shape=(2, 2))
    >>> centres(table, {}).tolist()
    [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    """
    found = torch.full((table.size, 2), torch.nan, dtype=torch.float64)
    for label in table.tensors:
        inside = slice(label.first, label.first + label.size)
        if label.function is runtime.pixels:
            found[inside] = _covering(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), label.shape[-2:]).flatten(0, 1)
        elif label.function in SLIDING:
            found[inside] = _slid(label, found)
        elif label.elementwise:
            found[inside] = _met(label, found)
        elif label.query_axis is not None:
            found[inside] = _queried(label, found, values)
    return found


def _covering(corners: Tensor, size: Sequence[int]) -> Tensor:
    """Centres (height, width, 2) of a grid of a size between two corners (2, 2)."""
    low, high = corners
    axes = [low[i] + (torch.arange(n).double() + 0.5) / n * (high[i] - low[i]) for i, n in enumerate(size)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _slid(label: LabelTensor, found: Tensor) -> Tensor:
    """A grid of another size on the same part of the image, for each of the maps slid over."""
    ids = label.operands[0].ids
    size, maps = label.shape[-2:], ids.reshape(-1, *ids.shape[-2:])
    if ids.dim() < 2 or len(label.shape) < 2 or len(maps) * torch.Size(size).numel() != label.size:
        return torch.full((label.size, 2), torch.nan, dtype=torch.float64)
    return torch.cat([_covering(_corners(found[m]), size).flatten(0, 1) for m in maps])


def _corners(places: Tensor) -> Tensor:
    """Upper left and lower right corner of a grid of centres (height, width, 2): half a step beyond the outermost."""
    known = places[~places.isnan().any(-1)]
    if not len(known):
        return torch.full((2, 2), torch.nan, dtype=torch.float64)
    first, last = known.aminmax(dim=0)
    counts = torch.tensor(places.shape[:2], dtype=torch.float64)
    half = torch.where(counts > 1, (last - first) / (counts - 1) / 2, torch.minimum(first, 1 - last))
    return torch.stack((first - half, last + half))


def _queried(label: LabelTensor, found: Tensor, values: Mapping[Node, Any]) -> Tensor:
    """What comes out of attention: the places of its queries, which are among the values it reads, or have left their
    map on its weights."""
    held = [v for v in map(values.get, label.nodes) if isinstance(v, Value)]
    for value, content in ((v, m) for v in held for m in v.maps):
        rows = ids_of_sample(content, value.batch, find_batch_axis(content, value.batch))
        if rows.numel() == label.size and bool((rows >= 0).all()):
            return found[rows.flatten()]
    return torch.full((label.size, 2), torch.nan, dtype=torch.float64)


def _met(label: LabelTensor, found: Tensor) -> Tensor:
    """Where labels meet: the middle of what is averaged; of two summands, the place of the first that lies somewhere.

    Summands of unknown place (what comes out of token mixing) are thereby known to lie there too.
    """
    operands = [operand.ids.reshape(label.size, -1) for operand in label.operands]
    place = found[operands[0]].nanmean(1)
    for ids in operands[1:]:
        place = torch.where(place.isnan(), found[ids].nanmean(1), place)
    for ids in (ids[:, 0] for ids in operands if ids.shape[1] == 1):
        found[ids] = torch.where(found[ids].isnan(), place, found[ids])
    return place


def grid(places: Tensor) -> Tensor | None:
    """Which of the tokens at ``places`` (tokens, 2) lies where: int64 (height, width), None if they form no full grid.

    Tokens that lie nowhere are left out.

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
    """Rank of each value among the distinct ones, and how many those are; rounding does not make values distinct."""
    ordered, order = values.sort()
    steps = torch.cat((torch.zeros(1, dtype=torch.int64), (ordered.diff() > TOLERANCE).long())).cumsum(0)
    return torch.empty_like(order).scatter_(0, order, steps), int(steps[-1]) + 1
