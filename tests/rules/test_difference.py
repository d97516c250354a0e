"""Differences and integrals along an axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from rule_harness import Probe, check, tokens
from torch import Tensor

from tlfx import Operation, ProvenanceError

SIZE = (2, 3, 6)


def halfway(y: Tensor) -> Tensor:
    """The average of neighbours on the last axis."""
    return (y[..., 1:] + y[..., :-1]) / 2


def on_both_sides(y: Tensor, axis: int) -> Tensor:
    """The average of the two neighbours, an end counting as its own."""
    length = y.shape[axis]
    places = torch.arange(length)
    one, other = (y.index_select(axis, (places + by).clamp(0, length - 1)) for by in (1, -1))
    return (one + other) / 2


PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "diff": (torch.diff, halfway),
    "diff_twice": (lambda x: torch.diff(x, n=2), lambda y: halfway(halfway(y))),
    "diff_of_rows": (lambda x: torch.diff(x, dim=2), lambda y: halfway(y.transpose(2, 3)).transpose(2, 3)),
    "diff_of_channels": (lambda x: torch.diff(x, dim=1), lambda y: y[:, :1]),
    "diff_prepended": (
        lambda x: torch.diff(x, prepend=x[..., -1:]),
        lambda y: halfway(torch.cat((y[..., -1:], y), -1)),
    ),
    "gradient": (lambda x: torch.gradient(x, dim=3)[0], lambda y: on_both_sides(y, 3)),
    "gradient_of_two_axes": (lambda x: torch.gradient(x, dim=(2, 3))[0], lambda y: on_both_sides(y, 2)),
    "trapezoid": (torch.trapezoid, lambda y: y.mean(3)),
    "trapezoid_of_rows": (lambda x: torch.trapezoid(x, dim=2), lambda y: y.mean(2)),
    "cumulative_trapezoid": (
        torch.cumulative_trapezoid,
        lambda y: (y.cumsum(3) / torch.arange(1, 7))[..., 1:],
    ),
}


@pytest.mark.parametrize("name", slow_except(PAIRS.keys() - {"diff", "gradient", "trapezoid"}, PAIRS))
def test_along_an_axis(name: str) -> None:
    function, twin = PAIRS[name]
    check(function, lambda y, x: twin(y), SIZE)


def test_a_difference_is_a_residual_connection() -> None:
    check(torch.diff, lambda y, x: halfway(y), SIZE, {"diff": Operation.RESIDUAL})


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.diff(F.pad(tokens(x).cumsum(1)[:, 3::4], (0, 0, 1, 0)), dim=1) / 4,
        lambda x: tokens(x).cumsum(1)[:, 2:] - tokens(x).cumsum(1)[:, :-2],
        lambda x: tokens(x).cumsum(1) - tokens(x),
    ],
)
def test_differences_of_running_sums_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ProvenanceError, match=r"subtracts content from its running sum .* by avg_pool, unfold"):
        Probe(function, (4, 4, 6))


def test_a_gradient_of_second_order_at_the_ends_is_refused() -> None:
    with pytest.raises(ProvenanceError, match="edge_order=2 reads three elements at each end"):
        Probe(lambda x: torch.gradient(x, dim=3, edge_order=2)[0], SIZE)
