"""The axes of a contraction of weights and labels, by subscripts, and places along axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["QUERY", "Equation", "is_range", "pick", "query_axis", "select"]

QUERY = "q"
"""The subscript of the one axis of queries."""


class Equation(NamedTuple):
    """An einsum of a weight and labels, a subscript for each axis without the batch and the label channels.

    >>> Equation("hqm", "m", "q").heads
    'h'
    """

    weight: str
    labels: str
    out: str

    @property
    def heads(self) -> str:
        """Subscripts of the weight that neither labels nor output have: it is summed or averaged over them."""
        return "".join(c for c in self.weight if c not in self.labels + self.out)


def query_axis(equation: Equation) -> int:
    """The axis of the queries in a weight (batch, *shape)."""
    return equation.weight.index(QUERY) + 1


def select(tensor: Tensor, axis: int, places: Sequence[int] | Tensor) -> Tensor:
    """Places along an axis, as a view where they are consecutive."""
    if isinstance(places, Tensor):
        return tensor.index_select(axis, places)
    if is_range(places):
        return tensor.narrow(axis, places[0], len(places))
    return tensor.index_select(axis, torch.tensor(places, device=tensor.device))


def is_range(places: Sequence[int]) -> bool:
    """Whether ascending places are consecutive."""
    return places[-1] - places[0] == len(places) - 1


def pick(x: Tensor, axes: Sequence[int | None]) -> Tensor:
    """Some axes of a tensor, None for a new one, in order; all others have size 1."""
    if list(axes) == list(range(x.dim())):
        return x
    given = [a for a in axes if a is not None]
    rest = [a for a in range(x.dim()) if a not in given]
    index = (*(None if a is None else slice(None) for a in axes), *(0 for _ in rest))
    return x.permute(*given, *rest)[index]
