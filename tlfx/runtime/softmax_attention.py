"""Spatial mixing by fused attention, whose weights the graph does not compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx.runtime.arithmetic import averaged, by_mass, label_arithmetic, with_mass
from tlfx.runtime.batch_axis import BatchAxis, merge_batch, split_batch
from tlfx.runtime.contraction import contract
from tlfx.runtime.equation import QUERY, Equation, select
from tlfx.runtime.kernel_attention import attention_by_kernel

__all__ = ["attend_by_operator", "attention", "attention_bias", "repeat_groups", "select_queries"]


_PART = {"cpu": 2**20}
_LARGE_PART = 2**26
"""Bytes of attention weights at a time, by device type: those that fit a CPU cache, or few launches on a GPU."""


@label_arithmetic
def attention(
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
) -> Tensor:
    """Spatial mixing by scaled dot-product attention (eq. 7, 9), averaged over heads, weights before dropout.

    ``own`` are labels of the queries in the shape of the output, which those have that the mask lets see no key in any
    head; None if there is no such query. ``residual`` are labels of a skip path in the shape of the result, which is
    averaged with them. On a GPU, one Triton kernel computes them where it can.
    """
    if query.is_cuda:
        given: dict[str, Any] = {"mask": mask, "causal": causal, "scale": scale, "queries": queries}
        attended = attention_by_kernel(query, key, labels, equation, own, where=where, residual=residual, **given)
        if attended is not None:
            return attended
    query, key = query.float(), key.float()
    bias = attention_bias(query, key, mask, causal)
    query, bias = select_queries(query, bias, queries)
    if own is not None and queries is not None:
        own = select(own, equation.out.index(QUERY) + 1, queries)
    key = repeat_groups(key, query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # (batch, heads, tokens, channels): a few samples at a time, so that weights stay in the cache
    if where == BatchAxis(0) and query.dim() == key.dim() == 4:
        in_parts = _attention_operator if torch.compiler.is_compiling() else _attention_in_parts
        return averaged(in_parts(query, key, labels, bias, own, scale, *equation), residual)
    scores = (query * scale) @ key.mT
    weight = torch.softmax(scores if bias is None else scores + bias, -1)
    return averaged(_mixed(split_batch(weight, where), labels, equation, own).flatten(1, -2), residual)


def _mixed(weight: Tensor, labels: Tensor, equation: Equation, own: Tensor | None) -> Tensor:
    """Labels mixed by the weights of a softmax, which are NaN for a query that sees no key."""
    if own is None:
        return contract(weight, labels, equation, average=True)
    return by_mass(contract(weight.nan_to_num(0.0), with_mass(labels), equation), own)


def _attention_in_parts(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    own: Tensor | None,
    scale: float,
    of_weight: str,
    of_labels: str,
    out: str,
) -> Tensor:
    """A few samples at a time, in one pair of buffers that stays in the cache; no tensor holds the weights of all. The
    last three arguments are the equation."""
    equation = Equation(of_weight, of_labels, out)
    batch, heads, count, _ = query.shape
    keys = key.shape[-2]
    step = min(batch, max(1, _PART.get(query.device.type, _LARGE_PART) // (4 * heads * count * keys)))
    buffers = query.new_empty(2, step * heads, count, keys)
    if step == batch:
        return _attention_of_part(query, key, labels, bias, own, scale, equation, buffers).contiguous()
    parts: list[Tensor] = []
    for start in range(0, batch, step):
        q, k, y = (_part(x, start, step) for x in (query, key, labels))
        b = bias if bias is None or bias.dim() < 4 else _part(bias, start, step)
        kept = own if own is None else _part(own, start, step)
        parts.append(_attention_of_part(q, k, y, b, kept, scale, equation, buffers[:, : q.shape[0] * heads]))
    return torch.cat(parts)


# one operator of a compiled graph: traced, its parts would be compiled one by one
_attention_operator = torch.library.custom_op("tlfx::attention_in_parts", _attention_in_parts, mutates_args=())


@_attention_operator.register_fake
def _attention_at_once(query: Tensor, key: Tensor, labels: Tensor, *given: Any) -> Tensor:
    """A tensor in the shape of the result."""
    weight = query.new_empty(*query.shape[:-1], key.shape[-2])
    mixed = contract(split_batch(weight, BatchAxis(0)), labels, Equation(*given[-3:])).flatten(1, -2)
    return torch.empty_like(mixed, memory_format=torch.contiguous_format)


def _part(x: Tensor, start: int, step: int) -> Tensor:
    """Some samples of a tensor (batch or 1, ...)."""
    return x if x.shape[0] == 1 else x[start : start + step]


def _attention_of_part(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    own: Tensor | None,
    scale: float,
    equation: Equation,
    buffers: Tensor,
) -> Tensor:
    """Labels of some samples, with ``buffers`` (2, samples · heads, queries, keys) for scores and weights."""
    samples, heads, count, _ = query.shape
    scores, weight = buffers.unbind()
    key = key if key.shape[1] == heads else key.expand(-1, heads, -1, -1)
    # beta=0 ignores what the buffer holds, NaN as well
    scores.baddbmm_(query.flatten(0, 1), key.flatten(0, 1).mT, beta=0, alpha=scale)
    if bias is not None:
        scores.unflatten(0, (-1, heads)).add_(bias)
    by_head = torch.softmax(scores, -1, out=weight).view(samples, heads, count, -1)
    if own is None and labels.shape[:-2].numel() == labels.shape[0]:  # the same for all heads
        return by_head.mean(1) @ labels.flatten(1, -2)
    return _mixed(split_batch(by_head, BatchAxis(0)), labels, equation, own).flatten(1, -2)


@label_arithmetic
def attend_by_operator(
    operator: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    own: Tensor,
    *settings: Any,
    where: BatchAxis,
) -> Tensor:
    """Spatial mixing by an attention operator that does not expose its weights: it runs with labels as its value
    (batch, heads, tokens, channels), summed over heads; a query that sees no key has its ``own`` label."""
    # (batch, heads, tokens, label channels + mass)
    value = merge_batch(with_mass(labels), where).unsqueeze(1).expand(-1, key.shape[1], -1, -1)
    out = operator(query.float(), key.float(), value, *settings)[0]
    return by_mass(split_batch(out.nan_to_num(0.0).sum(1), where), own).flatten(1, -2)


def attention_bias(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor | None:
    """The bias that a boolean or additive mask stands for: float32, -inf where a query does not see a key."""
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.float()
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))


def select_queries(
    query: Tensor, bias: Tensor | None, queries: Sequence[int] | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Some of the queries with their rows of the bias, all for None."""
    if queries is None:
        return query, bias
    return select(query, -2, queries), bias if bias is None or bias.shape[-2] == 1 else select(bias, -2, queries)


def repeat_groups(key: Tensor, query: Tensor) -> Tensor:
    """Keys of grouped-query attention, repeated for the queries of each group."""
    if key.dim() < 3 or key.shape[-3] in (1, query.shape[-3]):
        return key
    return key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
