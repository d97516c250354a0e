"""Weights of the graph as the Triton kernel takes them: weights and labels with their axes in one order, as views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tlfx.runtime.equation import QUERY, Equation, pick
from tlfx.runtime.kernels import MOST_CHANNELS, TYPES, kernel

__all__ = ["mix_by_kernel"]


def mix_by_kernel(
    weight: Tensor,
    labels: Tensor,
    equation: Equation,
    own: Tensor | None = None,
    *,
    is_softmax: bool = False,
    signed: bool = False,
    residual: Tensor | None = None,
) -> Tensor | None:
    """As :func:`tlfx.runtime.mix`, of a weight (batch or 1, *shape), by one kernel; None where there is none: without
    Triton, in float64, for more than 16 label channels, several axes of heads or of keys, or more than two along which
    the labels of the output vary."""
    mixed = kernel("mix_labels")
    length = _lengths(weight, labels, equation)
    axes = _axes(equation, length)
    if mixed is None or axes is None or not _is_supported(weight, labels):
        return None
    groups, head, key = axes
    batch = max(len(weight), len(labels))

    def view(x: Tensor, subscripts: str, wanted: Sequence[str | None], channels: bool = False) -> Tensor:
        places = [None if c is None or c not in subscripts else subscripts.index(c) + 1 for c in wanted]
        lengths = [1 if c is None else length[c] for c in wanted]
        last = [x.dim() - 1] if channels else []
        return pick(x, [0, *places, *last]).expand(batch, *lengths, *[-1] * len(last))

    of_weight = view(weight, equation.weight, (*groups, head, QUERY, key))
    of_labels = view(labels, equation.labels, (*groups, key), channels=True)
    of_own = None if own is None else view(own, equation.out, (*groups, QUERY), channels=True)
    if residual is not None:
        # (groups, inner, queries)
        residual = residual.unflatten(1, of_weight.shape[1:3] + of_weight.shape[4:5]).expand(batch, -1, -1, -1, -1)
    size = 0 if is_softmax else 2 if signed else 1
    return mixed(of_weight, of_labels, of_own, residual, size).flatten(1, -2)


_Axes = tuple[tuple[str | None, str | None], str | None, str]
"""Subscripts of up to two axes along which the labels of the output vary, of the heads, and of the keys."""


def _axes(equation: Equation, length: Mapping[str, int]) -> _Axes | None:
    """The axes by their length, None if the kernel has too few."""
    of_weight, of_labels, out = equation
    keys = [c for c in of_labels if c not in out]
    heads = [c for c in equation.heads if length[c] > 1]
    varying = [c for c in out[:-1] if length[c] > 1]
    if len(keys) != 1 or keys[0] not in of_weight or out[-1:] != QUERY or QUERY not in of_weight or QUERY in of_labels:
        return None
    if len(heads) > 1 or len(varying) > 2:
        return None
    # the axes of the kernel that are called groups and inner
    first, second = [None] * (2 - len(varying)) + varying
    return (first, second), heads[0] if heads else None, keys[0]


def _lengths(weight: Tensor, labels: Tensor, equation: Equation) -> dict[str, int]:
    """The length of each axis."""
    of_weight = dict(zip(equation.weight, weight.shape[1:], strict=True))
    of_labels = dict(zip(equation.labels, labels.shape[1:-1], strict=True))
    return {c: max(of_weight.get(c, 1), of_labels.get(c, 1)) for c in of_weight | of_labels}


def _is_supported(weight: Tensor, labels: Tensor) -> bool:
    same = weight.device == labels.device and labels.dtype == torch.float32
    return same and weight.dtype in TYPES and labels.shape[-1] <= MOST_CHANNELS
