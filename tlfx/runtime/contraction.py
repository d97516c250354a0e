"""Spatial mixing by weights that the graph shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlfx.runtime.arithmetic import Split, by_mass, label_arithmetic, magnitude, split_batch, with_mass

__all__ = ["context", "contract", "mix", "select", "settle"]


@label_arithmetic
def mix(
    weight: Tensor,
    rows: Tensor,
    equation: str,
    split: Split | None = None,
    queries: Sequence[int] | None = None,
    stochastic: bool = False,
    mass: bool = False,
    signed: bool = False,
) -> Tensor:
    """Spatial mixing, Y ← Norm(W)·Y (eq. 9), with |W| unless its rows already sum to 1 (``stochastic``).

    ``equation`` reads as in einsum, without the batch: ``"hqm,m->q"`` mixes rows m into rows q and averages the
    weights over h. The letter q stands for the queries, which ``queries`` can restrict. Rows with ``mass`` come from
    :func:`context`.
    """
    weight = split_batch(weight, split)
    if queries is not None:
        weight = select(weight, equation.index("q") + 1, queries)
    if stochastic:
        mixed = contract(weight.float(), rows, equation, average=True)
    else:
        mixed = by_mass(contract(magnitude(weight, signed), rows if mass else with_mass(rows), equation))
    return mixed.reshape(len(mixed), -1, mixed.shape[-1])


@label_arithmetic
def context(weight: Tensor, rows: Tensor, equation: str, split: Split | None = None, signed: bool = False) -> Tensor:
    """First contraction of a linear attention q(kᵀv): |k|·Y, with its mass |k|·1 as a last channel."""
    mixed = contract(magnitude(split_batch(weight, split), signed), with_mass(rows), equation)
    return mixed.reshape(len(mixed), -1, mixed.shape[-1])


@label_arithmetic
def settle(rows: Tensor) -> Tensor:
    """Labels of a context by itself: rows (batch, out, heads, channels + mass), summed over heads and normalised."""
    return by_mass(rows.sum(2))


def contract(weight: Tensor, rows: Tensor, equation: str, average: bool = False) -> Tensor:
    """Einsum of weight and rows, summed (or averaged) over the letters of the weight that occur nowhere else.

    Those letters, the heads, are contracted last: as one batched product the sum costs no pass over the weights.
    """
    operands, out = equation.split("->")
    of_weight, of_rows = operands.split(",")
    heads = "".join(c for c in of_weight if c not in of_rows + out)
    total = torch.einsum(f"B{of_weight},B{of_rows}K->B{heads}{out}K", weight, rows)
    if not heads:
        return total
    axes = tuple(range(1, 1 + len(heads)))
    return total.mean(axes) if average else total.sum(axes)


def select(tensor: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    """Places along an axis, as a view where they follow one another."""
    if places[-1] - places[0] == len(places) - 1:
        return tensor.narrow(axis, places[0], len(places))
    return tensor.index_select(axis, torch.tensor(places, device=tensor.device))
