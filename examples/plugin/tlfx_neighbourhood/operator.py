"""Neighbourhood attention (Hassani et al., CVPR 2023, arXiv 2204.07143) as a custom operator of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["attention"]


@torch.library.custom_op("tlfx_neighbourhood::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    """Each query attends to the size × size keys around it that are inside the image.

    query, key, value: (batch, heads, height, width, dim). ``size`` is odd. A graph has this one call, without weights.
    """
    return _attend(query, key, value, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    scores = torch.einsum("bhyxd,bhyxdij->bhyxij", query, _around(key, size)) * query.shape[-1] ** -0.5
    inside = _around(torch.ones_like(key[:1, :1, ..., :1]), size)[..., 0, :, :] > 0
    weight = scores.masked_fill(~inside, -torch.inf).flatten(-2).softmax(-1).unflatten(-1, (size, size))
    return torch.einsum("bhyxij,bhyxdij->bhyxd", weight, _around(value, size))


def _around(x: Tensor, size: int) -> Tensor:
    """The size × size neighbours of each position, zero outside: (batch, heads, height, width, dim, size, size)."""
    half = size // 2
    return pad(x, (0, 0, half, half, half, half)).unfold(2, size, 1).unfold(3, size, 1)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
    return torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Computes the weights again, as fused attention does."""
    with torch.enable_grad():
        query, key, value = (x.detach().requires_grad_() for x in ctx.saved_tensors)
        output = _attend(query, key, value, ctx.size)
        return *torch.autograd.grad(output, (query, key, value), grad), None


attention.register_autograd(_backward, setup_context=_keep)
