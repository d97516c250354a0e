"""Rules of the operator and the module, which tlfx finds through the entry-point group ``tlfx.rules``."""

from __future__ import annotations

import torch
from torch import Tensor

from tlfx.propagate import OpContext, Value
from tlfx.rules import rule
from tlfx_neighbourhood.operator import attention
from tlfx_neighbourhood.smoothing import Smoothing


@rule(attention)
def neighbourhood_attention(op: OpContext, query: Value, key: Value, value: Value, size: int) -> Value:
    """(batch, heads, height, width, dim): Y ← W·Y, W being the softmax over each neighbourhood, averaged over heads."""
    return op.mix_by(neighbourhood_weights, value, query, key, size, axes=(2, 3))


def neighbourhood_weights(query: Tensor, key: Tensor, size: int) -> Tensor:
    """The weights (batch, tokens, tokens) of the operator, which it does not return."""
    height, width, dim = query.shape[2:]
    scores = query.float().flatten(2, 3) @ key.float().flatten(2, 3).transpose(2, 3) * dim**-0.5
    rows, columns = (torch.arange(n, device=query.device) for n in (height, width))
    near = [(place[:, None] - place).abs() <= size // 2 for place in (rows, columns)]
    inside = (near[0][:, None, :, None] & near[1][None, :, None, :]).reshape(height * width, height * width)
    weights: Tensor = scores.masked_fill(~inside, -torch.inf).softmax(-1).mean(1)
    return weights


@rule(Smoothing)
def smoothing(op: OpContext, module: Smoothing, x: Value) -> Value:
    """(batch, tokens, channels): Y ← Norm(W)·Y, W being the decaying weights, averaged over channels."""
    return op.mix_by(smoothing_weights, x, module, x.shape[1])


def smoothing_weights(module: Smoothing, tokens: int) -> Tensor:
    """The weights (1, tokens, tokens) of the module, by distance."""
    place = torch.arange(tokens, device=module.rate.device)
    return module.decaying(tokens).mean(1)[(place[:, None] - place).abs()][None]
