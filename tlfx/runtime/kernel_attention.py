"""Attention as the Triton kernel takes it: queries, keys, masks and labels with their axes in one order, as views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tlfx.runtime.batch_axis import BatchAxis, split_batch
from tlfx.runtime.equation import QUERY, Equation, is_range, pick, select
from tlfx.runtime.kernels import MOST_CHANNELS, TYPES, kernel

__all__ = ["attention_by_kernel", "attention_of_heads_by_kernel"]

_MOST_WIDTH = 256
"""Largest width of a head."""


def attention_by_kernel(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    equation: Equation,
    own: Tensor | None = None,
    *,
    where: BatchAxis,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    queries: Sequence[int] | Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor | None:
    """As :func:`tlfx.runtime.attention`, by one kernel; None where there is none: without Triton, in float64, for heads
    wider than 256, more than 16 label channels, or labels that vary along several axes of heads."""
    labels_by = kernel("attention_labels")
    axes = _Axes.of(query, key, labels, equation, where) if _is_supported(query, key, labels, mask) else None
    if labels_by is None or axes is None:
        return None
    query, key, labels = axes.of_query(query), axes.of_key(key), axes.of_labels(labels)
    own = own if own is None else axes.of_labels(own)
    # scaled_dot_product_attention takes a mask or causality, not both
    mask = axes.of_mask(mask, query.shape[-2], key.shape[-2]) if mask is not None and not causal else None
    index = None
    # a causal kernel compares positions, which a view of some queries would lose
    if isinstance(queries, Tensor) or (queries is not None and (causal or not is_range(queries))):
        index = torch.as_tensor(queries, device=query.device)
    elif queries is not None:
        query = select(query, -2, queries)
        mask, own = (x if x is None else select(x, -2, queries) for x in (mask, own))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if residual is not None:
        lead, tokens = labels.shape[1:3], query.shape[-2] if index is None else len(index)
        residual = residual.unflatten(1, (*lead, tokens)).expand(len(labels), -1, -1, -1, -1)
    return labels_by(query, key, labels, own, mask, index, residual, scale, causal).flatten(1, -2)


def attention_of_heads_by_kernel(
    query: Tensor, key: Tensor, labels: Tensor, *, where: BatchAxis, **options: Any
) -> Tensor | None:
    """The same for labels (batch, *lead, m, channels) that differ from head to head, head by head: (batch, *lead, n,
    channels); a query that sees no key is NaN."""
    lead = "abcdefgh"[: labels.dim() - 3]
    equation = Equation(f"{lead}{QUERY}m", f"{lead}m", f"{lead}{QUERY}")
    mixed = attention_by_kernel(query, key, labels, equation, where=where, **options)
    return None if mixed is None else mixed.unflatten(1, (*labels.shape[1:-2], -1))


def _is_supported(query: Tensor, key: Tensor, labels: Tensor, mask: Tensor | None) -> bool:
    types = query.dtype in TYPES and key.dtype in TYPES and labels.dtype == torch.float32
    devices = {x.device for x in (query, key, labels, mask) if x is not None}
    return types and len(devices) == 1 and query.shape[-1] <= _MOST_WIDTH and labels.shape[-1] <= MOST_CHANNELS


class _Axes(NamedTuple):
    """The positions of the kernel's axes: two along which labels vary, and the heads; None for one of size 1."""

    lead: tuple[int, ...]
    """Lengths of the axes of the weights before those of queries and keys."""
    where: BatchAxis
    batch: int
    labels: tuple[int | None, int | None]
    """Places among the axes of the labels (batch, *shape, m)."""
    weight: tuple[int | None, int | None, int | None]
    """Places among the axes of the weights, the batch in front."""

    @classmethod
    def of(cls, query: Tensor, key: Tensor, labels: Tensor, equation: Equation, where: BatchAxis) -> _Axes | None:
        """The axes, None if the kernel has too few."""
        lead, of_key = tuple(query.shape[:-2]), _ungrouped(query, key)
        if lead != of_key:  # broadcast_shapes takes longer than all else here
            lead = tuple(torch.broadcast_shapes(lead, of_key))
        subscripts, kept = equation.weight[:-2], equation.labels[:-1]
        split = (*lead[: where.axis], where.outer, where.inner, *lead[where.axis + 1 :])
        if len(subscripts) != len(split) or equation.weight != subscripts + QUERY + equation.labels[-1]:
            return None
        size = dict(zip(subscripts, split, strict=True))
        varying = [c for c in kept if size[c] > 1]
        heads = [c for c in subscripts if c not in kept and size[c] > 1]
        grouped = key.dim() > 2 and key.shape[-3] not in (1, lead[-1])
        if (
            equation.out != kept + QUERY
            or len(varying) > 2
            or len(heads) > 1
            or (grouped and heads != [subscripts[-1]])
        ):
            return None
        # the axes of the kernel that are called groups and inner; with others of size 1 nothing needs to be permuted
        single = [c for c in kept if size[c] == 1][: 2 - len(varying)]
        places = [kept.index(c) + 1 for c in kept if c in varying or c in single]
        first, second = [None] * (2 - len(places)) + places
        of_weight = [None if i is None else subscripts.index(kept[i - 1]) + 1 for i in (first, second)]
        head = subscripts.index(heads[0]) + 1 if heads else None
        return cls(lead, where, labels.shape[0], (first, second), (of_weight[0], of_weight[1], head))

    def of_query(self, query: Tensor) -> Tensor:
        """(batch, groups, inner, heads, n, d)"""
        return self._of_weight(query.expand(*self.lead, *query.shape[-2:]))

    def of_key(self, key: Tensor) -> Tensor:
        """(batch, groups, inner, heads or fewer, m, d)"""
        heads = self.lead[-1:] if key.dim() < 3 or key.shape[-3] == 1 else key.shape[-3:-2]
        return self._of_weight(key.expand(*self.lead[:-1], *heads, *key.shape[-2:]))

    def of_mask(self, mask: Tensor, queries: int, keys: int) -> Tensor:
        """(batch, groups, inner, heads, n, m)"""
        return self._of_weight(mask.expand(*self.lead, queries, keys))

    def of_labels(self, labels: Tensor) -> Tensor:
        """(batch, groups, inner, m, channels)"""
        picked = pick(labels, [0, *self.labels, labels.dim() - 2, labels.dim() - 1])
        lead = [1 if place is None else -1 for place in self.labels]
        return picked.expand(self.batch, *lead, -1, -1)

    def _of_weight(self, x: Tensor) -> Tensor:
        split = split_batch(x, self.where)
        picked = pick(split, [0, *self.weight, split.dim() - 2, split.dim() - 1])
        return picked.expand(self.batch, -1, -1, -1, -1, -1)


def _ungrouped(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """The axes of a key before its last two, with as many heads as the query has."""
    if key.dim() < 3 or key.shape[-3] == 1:
        return tuple(key.shape[:-2])
    return (*key.shape[:-3], query.shape[-3])
