"""Label policies at run time: labels weighted by values that the model computes, instead of the paper's means."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tlfx.runtime.arithmetic import (
    TINY,
    by_mass,
    label_arithmetic,
    magnitude,
    with_mass,
)
from tlfx.runtime.batch_axis import BatchAxis, merge_batch, split_batch
from tlfx.runtime.contraction import contract
from tlfx.runtime.equation import Equation, query_axis, select
from tlfx.runtime.kernel_attention import attention_of_heads_by_kernel
from tlfx.runtime.softmax_attention import attention_bias, repeat_groups, select_queries

__all__ = [
    "BranchScale",
    "attention_by_norm",
    "by_value",
    "glu_gate",
    "heads_by_norm",
    "massed",
    "residual_by_norm",
    "residual_by_scale",
    "total",
    "weigh",
    "weighted",
    "with_masses_of",
]

BranchScale = tuple[Any, int, BatchAxis]
"""A factor of a branch, the rank of the product, and the place of its batch."""


@label_arithmetic
def residual_by_norm(
    one: Tensor,
    other: Tensor,
    a: Tensor,
    b: Tensor,
    places: Tensor,
    *,
    where: BatchAxis,
    over: Sequence[int],
    scales: Sequence[float] = (1, 1),
) -> Tensor:
    """Residual connection scales[0]·a + scales[1]·b, each label weighted by the norm of its summand at ``places``.

    Norms are taken over the axes ``over`` of a sample, its batch axis split in two; ``places`` count the others.
    """
    norms = [_norm(split_batch(x, where), [i + 1 for i in over]).flatten(1) for x in torch.broadcast_tensors(a, b)]
    # ascending places: as many as there are norms are all
    read = [n[..., None] if len(places) == n.shape[1] else n[:, places, None] for n in norms]
    return _between(one, other, *(n if abs(s) == 1 else n * abs(s) for n, s in zip(read, scales, strict=True)))


@label_arithmetic
def residual_by_scale(
    one: Tensor,
    other: Tensor,
    factors: Sequence[BranchScale],
    other_factors: Sequence[BranchScale],
    *,
    scales: Sequence[float] = (1, 1),
) -> Tensor:
    """Residual connection, each label weighted by the mean |factor| of its summand, sample by sample."""
    sides = zip((factors, other_factors), scales, strict=True)
    return _between(one, other, *(_strength(g, one.new_full((1,), abs(s)))[:, None, None] for g, s in sides))


@label_arithmetic
def heads_by_norm(
    weight: Tensor,
    labels: Tensor,
    equation: Equation,
    value: Tensor,
    of_value: str,
    where: BatchAxis,
    where_value: BatchAxis,
    queries: Sequence[int] | Tensor | None = None,
    signed: bool = False,
    deviation: bool = False,
) -> Tensor:
    """Spatial mixing by attention (eq. 9), the heads of each token weighted by the norms of its value in them.

    ``equation`` as in :func:`mix`; ``of_value`` are the subscripts of the value for one sample; those that the weight
    lacks are its channels. Norms are those of the ``deviation`` from the mean over the contracted tokens, if so."""
    weight, value = magnitude(split_batch(weight, where), signed), split_batch(value, where_value)
    of_weight = equation.weight
    if queries is not None:
        weight = select(weight, query_axis(equation), queries)
    kept = "".join(c for c in of_value if c in of_weight)
    if deviation:
        value = _centred(
            value, [i + 1 for i, c in enumerate(of_value) if c in equation.labels and c not in equation.out]
        )
    norms = _norm(value, [i + 1 for i, c in enumerate(of_value) if c not in of_weight])
    weight = torch.einsum(f"B{of_weight},B{kept}->B{of_weight}", weight, norms + TINY)
    mixed = by_mass(contract(weight, with_mass(labels), equation))
    return mixed.reshape(len(mixed), -1, mixed.shape[-1])


@label_arithmetic
def attention_by_norm(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    labels: Tensor,
    heads: Sequence[int],
    where: BatchAxis,
    own: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    queries: Sequence[int] | Tensor | None = None,
    deviation: bool = False,
) -> Tensor:
    """The same by scaled dot-product attention: the operator itself run on labels times norms, over norms; on a GPU by
    one Triton kernel where it can.

    Labels (batch, *lead, m, channels) have the axes of the value, its batch axis split in two, with size 1 along heads;
    ``heads`` are the axes to sum over in (batch, *lead, n). A query that sees no key has its ``own`` label, (batch,
    *shape of the output, channels).
    """
    value = _centred(value, [-2]) if deviation else value
    norms = _norm(value, [-1], keepdim=True) + TINY
    # labels and mass times ‖v‖: one run gives W·‖v‖·Y and W·‖v‖
    labels = repeat_groups(merge_batch(with_mass(labels), where) * norms, query)
    key, mixed = repeat_groups(key, query), None
    if query.is_cuda:
        given: dict[str, Any] = {"mask": mask, "causal": causal, "scale": scale, "queries": queries}
        mixed = attention_of_heads_by_kernel(query, key, split_batch(labels, where), where=where, **given)
    if mixed is None:
        query, key = query.float(), key.float()
        bias = attention_bias(query, key, mask, causal)
        query, bias = select_queries(query, bias, queries)
        with _any_kernel():
            mixed = F.scaled_dot_product_attention(query, key, labels, bias, scale=scale)
        mixed = split_batch(mixed, where)
    if own is not None:
        mixed, own = mixed.nan_to_num(0.0), own if queries is None else select(own, own.dim() - 2, queries)
    return by_mass(mixed.sum(tuple(heads)) if heads else mixed, own).flatten(1, -2)


def _any_kernel() -> AbstractContextManager[Any]:
    """A context in which attention has a kernel for all shapes, also where the model chooses one that has not."""
    return nullcontext() if torch.backends.cuda.math_sdp_enabled() else sdpa_kernel(SDPBackend.MATH)


@label_arithmetic
def weighted(
    labels: Tensor,
    weight: Tensor,
    groups: Tensor,
    axes: Sequence[int],
    *,
    valid: Tensor | None = None,
    signed: bool = False,
) -> Tensor:
    """Aggregation by a layer: labels (batch, out, in, channels), each weighted by the ``weight`` of its elements.

    The weight is averaged over all but its ``axes``, along which ``groups`` gives the label that each place belongs to.
    ``valid`` (out, in) marks the labels with content.
    """
    weight = magnitude(weight, signed).movedim(tuple(axes), tuple(range(len(axes))))
    by_place = weight.flatten(len(axes)).mean(-1) if weight.dim() > len(axes) else weight
    # the weights of the elements of one token are added
    by_row = by_place.new_zeros(labels.shape[2]).index_add(0, groups, by_place.flatten())
    if valid is None:
        return torch.einsum("i,BoiK->BoK", by_row / by_row.sum(), labels)
    share = by_row * valid
    return torch.einsum("oi,BoiK->BoK", share / share.sum(1, keepdim=True).clamp_min(TINY), labels)


@label_arithmetic
def massed(labels: Tensor) -> Tensor:
    """Labels with mass 1 as a last channel."""
    return with_mass(labels)


@label_arithmetic
def by_value(labels: Tensor, value: Tensor, *, where: BatchAxis, deviation: bool = False) -> Tensor:
    """Labels with the norm of the value of their token as mass, a last channel; of its ``deviation`` from the mean of
    the tokens, if so.

    Labels (batch, *shape, channels) have the axes of the value, its batch axis split in two, with size 1 along those
    that are not axes of tokens, over which norms are taken.
    """
    value = split_batch(value, where)
    tokens = [a for a in range(1, value.dim()) if labels.shape[a] > 1]
    value = _centred(value, tokens) if deviation else value
    others = [a for a in range(1, value.dim()) if a not in tokens]
    size = _norm(value, others, keepdim=True)
    return (with_mass(labels) * (size + TINY)[..., None]).flatten(1, -2)


@label_arithmetic
def glu_gate(x: Tensor, axis: int) -> Tensor:
    """The factor by which a gated linear unit multiplies the first half of ``x`` along an axis."""
    return x.chunk(2, axis)[1].sigmoid()


@label_arithmetic
def weigh(
    labels: Tensor,
    factor: Tensor,
    *,
    where: BatchAxis,
    at: Sequence[int],
    over: Sequence[int] = (),
    massed: bool = False,
    averaged: Sequence[int] = (),
    inverse: bool = False,
    signed: bool = False,
) -> Tensor:
    """Labels of a product, times |factor|, which is their mass, a last channel; ``massed`` labels have one already.

    Labels (batch, *shape, channels) have the axes of the product, its batch axis split in two, with size 1 along those
    over which |factor| is averaged. The axes of the factor are those ``at`` of the product, -1 for those that it lacks.
    Masses along the axes ``over`` of *shape are averaged, |factor| also along those ``averaged``.
    """
    weight = magnitude(factor, signed)
    weight = weight.reciprocal() if inverse else weight
    lacking = [i for i, a in enumerate(at) if a < 0]
    weight, at = weight.mean(lacking) if lacking else weight, [a for a in at if a >= 0]
    order = sorted(range(len(at)), key=at.__getitem__)
    shape = [1] * (labels.dim() - 3)
    for i in order:
        shape[at[i]] = weight.shape[i]
    # axes in the order of the product, of size 1 where the factor has none
    weight = weight.permute(order).reshape(shape)
    weight = split_batch(weight, where) if shape[where.axis] > 1 else weight.unsqueeze(where.axis)[None]
    # channels: along these, labels are equal
    constant = [
        a for a in range(1, weight.dim()) if weight.shape[a] > 1 and (labels.shape[a] == 1 or a - 1 in averaged)
    ]
    weight = weight.mean(constant, keepdim=True) if constant else weight
    product = (labels if massed else with_mass(labels)) * weight[..., None]
    return (product.mean([i + 1 for i in over], keepdim=True) if over else product).flatten(1, -2)


@label_arithmetic
def with_masses_of(labels: Tensor, *massed: Tensor) -> Tensor:
    """Labels (batch, out, channels) with the product of the masses of others as mass, a last channel."""
    mass = torch.stack([m[..., -1:] for m in massed]).prod(0)
    return torch.cat((labels * mass, mass), -1)


@label_arithmetic
def total(labels: Tensor, weights: Tensor) -> Tensor:
    """Labels with a mass (batch, out, in, channels), summed with ``weights`` (out, in)."""
    return (labels * weights[..., None]).sum(2)


def _between(one: Tensor, other: Tensor, weight: Tensor, other_weight: Tensor) -> Tensor:
    """Two labels by weight, and their average where neither has any."""
    weight = weight + TINY
    return torch.lerp(other, one, weight / (weight + (other_weight + TINY)))


def _centred(value: Tensor, axes: Sequence[int]) -> Tensor:
    """A value less its mean over axes."""
    value = value if value.is_complex() else value.float()
    return value - value.mean(tuple(axes), keepdim=True)


def _norm(value: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    """Norms over axes, float32; the magnitude without axes."""
    if value.is_complex() or not axes:
        value = value.abs()
    if not axes:
        return value.float()
    # cast inside of the sum: a copy in float32 would take longer than the norm
    dtype = torch.promote_types(value.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(value, dim=tuple(axes), keepdim=keepdim, dtype=dtype)
    return norms.float()


def _strength(factors: Sequence[BranchScale], strength: Tensor) -> Tensor:
    """Product of the means of |factor| of each sample, (batch or 1)."""
    for factor, rank, where in factors:
        size = torch.as_tensor(factor, device=strength.device).abs().float()
        size = size.reshape(*[1] * (rank - size.dim()), *size.shape)
        # LayerScale is the same for all samples, stochastic depth is not
        by_sample = split_batch(size, where) if size.shape[where.axis] > 1 else size[None]
        strength = strength * by_sample.flatten(1).mean(1)
    return strength
