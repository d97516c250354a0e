"""Spatial mixing by weights that the graph computes: W·Y and the two contractions of linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx.runtime.arithmetic import averaged, by_mass, label_arithmetic, magnitude, with_mass
from tlfx.runtime.batch_axis import BatchAxis, split_batch
from tlfx.runtime.equation import QUERY, Equation, query_axis, select
from tlfx.runtime.kernel_mixing import mix_by_kernel

__all__ = ["context", "contract", "finalize", "mix"]


@label_arithmetic
def mix(
    weight: Tensor,
    labels: Tensor,
    equation: Equation,
    own: Tensor | None = None,
    *,
    where: BatchAxis | None = None,
    queries: Sequence[int] | Tensor | None = None,
    is_softmax: bool = False,
    mass: bool = False,
    signed: bool = False,
    valid: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Spatial mixing, Y ← Norm(W)·Y (eq. 9), with |W| unless its rows sum to 1 already (``is_softmax``); on a GPU by
    one Triton kernel where it can.

    Args:
        weight: any shape, its batch at ``where``; no batch if that is None.
        labels: (batch, *shape, channels), float32; their last channel is their mass if ``mass``, as :func:`context`
            leaves it.
        equation: of the weight for one sample and the labels; weights are averaged over its heads.
        own: labels of the queries in the shape of the output, which those have whose weights are all zero; None if
            they have the mean of ``labels``.
        queries: places along the query axis to compute; None for all.
        valid: marks those of ``labels`` with content, 1 or 0; None if all have.
        residual: labels of a skip path, (batch or 1, queries, channels), which the result is averaged with.
    """
    weight = weight[None] if where is None else split_batch(weight, where)
    if queries is not None:
        weight = select(weight, query_axis(equation), queries)
        own = own if own is None else select(own, equation.out.index(QUERY) + 1, queries)
    # the kernel takes neither labels with a mass nor padding
    if weight.is_cuda and not mass and valid is None:
        given: dict[str, Any] = {"is_softmax": is_softmax, "signed": signed, "residual": residual}
        mixed = mix_by_kernel(weight, labels, equation, own, **given)
        if mixed is not None:
            return mixed
    if is_softmax:
        mixed = contract(weight.float(), labels, equation, average=True)
    else:
        labels = labels if mass else with_mass(labels)
        labels = labels if valid is None else labels * valid[..., None]
        mixed = by_mass(contract(magnitude(weight, signed, vanishes=own is not None), labels, equation), own)
    return averaged(mixed.reshape(len(mixed), -1, mixed.shape[-1]), residual)


@label_arithmetic
def context(
    weight: Tensor,
    labels: Tensor,
    equation: Equation,
    where: BatchAxis | None = None,
    mass: bool = False,
    signed: bool = False,
) -> Tensor:
    """First contraction of a linear attention q(kᵀv): |k|·Y, with its mass |k|·1 as a last channel; labels have one
    already if ``mass``."""
    weight = weight[None] if where is None else split_batch(weight, where)
    mixed = contract(magnitude(weight, signed), labels if mass else with_mass(labels), equation)
    return mixed.reshape(len(mixed), -1, mixed.shape[-1])


@label_arithmetic
def finalize(labels: Tensor) -> Tensor:
    """Labels of a context that is used by itself: (batch, out, heads, channels + mass), normalised over heads."""
    return by_mass(labels.sum(2))


def contract(weight: Tensor, labels: Tensor, equation: Equation, average: bool = False) -> Tensor:
    """Einsum of a weight (batch, *shape) and labels, summed (or averaged) over the heads of the equation.

    The heads are contracted last: as one batched product, the sum costs no pass over the weights.
    """
    heads, out = equation.heads, equation.out
    # B is the batch, K the channels of labels: no equation uses these letters
    total = torch.einsum(f"B{equation.weight},B{equation.labels}K->B{heads}{out}K", weight, labels)
    if not heads:
        return total
    axes = tuple(range(1, 1 + len(heads)))
    return total.mean(axes) if average else total.sum(axes)
