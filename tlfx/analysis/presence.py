"""Contribution and presence of tokens in one spatial operation: attention, token MLP, convolution (eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlfx.errors import InputError
from tlfx.graph.nodes import module_path
from tlfx.operations import Operation
from tlfx.propagate import Options, Propagation
from tlfx.propagate.labels import MASK, LabelTable, LabelTensor, Operand
from tlfx.propagate.observer import ObservedLabels
from tlfx.trace import trace

__all__ = ["TokenPresence", "chunks", "contribution", "presence", "spatial_presence"]

BATCH = 2
CHANNELS = 256
"""Number of tokens per pass and image, as channels of the mask."""


def contribution(weights: Tensor) -> Tensor:
    """Contribution of each token to each mixed token, c of eq. 2: float64 (…, mixed tokens, tokens), rows sum to 1.

    Args:
        weights: (…, mixed tokens, tokens), the spatial mixing matrix W of ẑ = W·z.

    c(zᵢ, ẑⱼ) is the absolute weight of zᵢ in ẑⱼ, divided by the sum of the absolute weights of all tokens in ẑⱼ. (The
    first index of w in eq. 2 is that of the token, and the second that of the mixed token.)

    >>> contribution(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
    tensor([[0.7500, 0.2500],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    amount = weights.double().abs()
    return amount / amount.sum(-1, keepdim=True)


def presence(weights: Tensor) -> Tensor:
    """Presence of each token in all mixed tokens, p(z) of eq. 2: float64 (…, tokens), the sum of its contributions.

    >>> presence(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
    tensor([1.2500, 0.7500], dtype=torch.float64)
    """
    return contribution(weights).sum(-2)


@dataclass(frozen=True, eq=False)
class TokenPresence:
    """Presence of the tokens that enter one spatial operation.

    Attributes:
        path: path of the module of the operation.
        operator: name of its node in the graph.
        presence: float32 (tokens,), p of each token; the sum is the number of mixed tokens.
    """

    path: str
    operator: str
    presence: Tensor


@torch.no_grad()
def spatial_presence(model: nn.Module, image: Tensor) -> list[TokenPresence]:
    """Presence p(z) of eq. 2 in every spatial operation of a model by itself, in order.

    Operations are those of the class "spatial mixing" of Table 10: attention (weights averaged over heads), token MLPs
    and convolutions. At the edge of the image a convolution has the weights of the tokens that exist, so that p = 1
    holds for tokens that no window at the edge contains (eq. 3). Tokens that have one label, such as a class token
    and registers in the first block or the padding of windows, count together. :mod:`tlfx.analysis.presence_over_depth`
    measures all operations up to a layer.

    Args:
        model: any module; it is put in evaluation mode and not changed otherwise.
        image: floating (channels, height, width), normalised as the model expects.

    Raises InputError if the model has no spatial mixing, or linear attention, whose matrix W does not exist;
    CaptureError and UnknownOperatorError as in :func:`tlfx.align`.

    >>> blur = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    >>> [layer] = spatial_presence(nn.Sequential(nn.Conv2d(3, 1, 1), blur), torch.rand(3, 1, 8))
    >>> layer.path, layer.presence[2:6].round(decimals=4)
    ('1', tensor([1., 1., 1., 1.]))
    """
    images = image.expand(BATCH, *image.shape)
    traced = trace(model.eval(), images, Options(attention="fused"), any_batch=False)
    propagation = traced.propagation
    mixings = _mixings(propagation)
    ids = {label.after.name: _with_chosen_tokens(propagation, label) for label in mixings if label.after is not None}
    graph = traced.rewrite(recorded=ObservedLabels(ids), outputs=[None] * len(propagation.outputs))
    counts = [len(_tokens(label)) for label in mixings]
    parts: list[list[Tensor]] = [[] for _ in mixings]
    for numbers in chunks(max(counts)):
        # each channel of the mask holds the number of a token everywhere, which chosen_tokens compares
        _, labels = graph(images, numbers[..., None, None].to(image).expand(-1, -1, *image.shape[1:]))
        for part, label, count in zip(parts, labels[-len(mixings) :], counts, strict=True):
            part.append(label.sum(1).flatten()[: max(0, count - int(numbers[0, 0]))])
    return [
        TokenPresence(module_path(label.after).partition("@")[0], label.after.name, torch.cat(part))
        for label, part in zip(mixings, parts, strict=True)
        if label.after is not None
    ]


def _mixings(propagation: Propagation) -> list[LabelTensor]:
    """The label tensors of spatial mixing. Raises InputError, see :func:`spatial_presence`."""
    mixings = [
        label
        for label in propagation.labels.tensors
        if label.after is not None and propagation.operations.get(label.after) is Operation.SPATIAL_MIX
    ]
    if not mixings:
        raise InputError("the model has no spatial mixing: no attention, token MLP or convolution mixes its tokens")
    linear = next((label.after for label in mixings if "mass" in label.kwargs), None)
    if linear is not None:
        raise InputError(
            f"{module_path(linear)} computes linear attention in two contractions, so that the mixing matrix of eq. 2 "
            "does not exist; presence_over_depth measures such models"
        )
    return mixings


def _tokens(label: LabelTensor) -> Tensor:
    """Label ids of the tokens that an operation mixes, sorted."""
    tokens: Tensor = torch.cat([operand.ids.flatten() for operand in label.operands]).unique()
    return tokens


def _with_chosen_tokens(propagation: Propagation, label: LabelTensor) -> Tensor:
    """New label ids (mixed tokens,): the operation applied to tokens of which each channel has chosen one."""
    table, tokens = propagation.labels, _tokens(label)
    args = tuple(_chosen(table, propagation, a, tokens) if isinstance(a, Operand) else a for a in label.args)
    options = {"kwargs": label.kwargs, "query_axis": label.query_axis, "by_sample": label.by_sample}
    return table.add(label.function, *args, shape=label.shape, after=label.after, **options).flatten()


def _chosen(table: LabelTable, propagation: Propagation, operand: Operand, tokens: Tensor) -> Operand:
    numbers = torch.searchsorted(tokens, operand.ids).flatten()
    ids = table.add(chosen_tokens, MASK, numbers, shape=operand.ids.shape, after=propagation.images)
    return Operand(ids)


def chosen_tokens(mask: Tensor, numbers: Tensor) -> Tensor:
    """Labels (batch, tokens, K) that are 1 for the token whose number is the value of a channel of the mask, else 0.

    ``mask`` (batch, K, height, width) is constant over pixels, ``numbers`` (tokens,) are the numbers of the tokens.

    >>> chosen_tokens(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([2, 1, 0]))
    tensor([[[0., 1.],
             [1., 0.],
             [0., 0.]]])
    """
    chosen: Tensor = numbers[:, None] == mask[:, None, :, 0, 0]
    return chosen.float()


def chunks(count: int) -> Iterator[Tensor]:
    """Numbers of tokens for each image of a batch and channel, int64 (images, channels); the last exceed ``count``."""
    channels = min(CHANNELS, -(-count // BATCH))
    for first in range(0, count, BATCH * channels):
        yield torch.arange(first, first + BATCH * channels).view(BATCH, channels)
