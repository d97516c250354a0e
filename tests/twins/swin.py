"""Twin of Swin transformers, timm's and torchvision's: shifted windows one by one, in the order of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import timm
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from twins.arithmetic import attention, convolution, image_share, mix, residual, start, uniform
from twins.recorder import outputs_of

TorchvisionBlock = torchvision.models.swin_transformer.SwinTransformerBlock
BLOCKS = (timm.models.swin_transformer.SwinTransformerBlock, TorchvisionBlock)
MERGINGS = (timm.models.swin_transformer.PatchMerging, torchvision.models.swin_transformer.PatchMerging)


class Place(NamedTuple):
    """A place of a window on one axis: the token it holds (none for padding) and its region under the shift."""

    token: int | None
    region: int


def aligned_share(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 9 in every window, eq. 11 after it, patch merging as aggregation, and a global average."""
    seen = outputs_of(model, images, [layer.norm1 for layer in model.modules() if isinstance(layer, BLOCKS)])
    share, labels = image_share(mask), start(mask)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            labels = convolution(labels, layer)
        elif isinstance(layer, MERGINGS):
            labels = merge(labels)
        elif isinstance(layer, BLOCKS):
            labels = residual(labels, window_mixing(layer, seen[layer.norm1], labels, share))
    return labels.mean((1, 2))


def merge(labels: Tensor) -> Tensor:
    """Table 10: the labels of a 2 × 2 square aggregated; the padding of an odd edge has none."""
    _, height, width = labels.shape
    total, valid = (
        uniform(pad(x, (0, width % 2, 0, height % 2)), (2, 2), (2, 2), (0, 0))
        for x in (labels, torch.ones_like(labels))
    )
    return total / valid


def window_mixing(
    block: Any, tokens: Tensor, labels: Tensor, share: Tensor, maps: Callable[..., Tensor] | None = None
) -> Tensor:
    """Eq. 7 and 9 window by window; padded places hold a zero token labelled λ (eq. 5). ``maps`` replaces eq. 7."""
    maps = maps or window_map
    _, height, width = labels.shape
    nowhere = height * width
    tokens = pad(tokens.double().flatten(1, 2), (0, 0, 0, 1))
    labels = torch.cat([labels.flatten(1), share[:, None]], dim=1)
    mixed = torch.empty_like(labels)
    bias = position_bias(block.attn)
    for rows, columns in product(axis_windows(block, height, 0), axis_windows(block, width, 1)):
        places = list(product(rows, columns))
        index = [nowhere if None in (y.token, x.token) else y.token * width + x.token for y, x in places]
        region = torch.tensor([3 * y.region + x.region for y, x in places])
        apart = region[:, None] != region[None, :]
        mixed[:, index] = mix(maps(block.attn, tokens[:, index], bias - 100.0 * apart), labels[:, index])
    return mixed[:, :nowhere].unflatten(1, (height, width))


def window_map(attn: Any, tokens: Tensor, bias: Tensor) -> Tensor:
    """Eq. 7 inside one window, (B, n, C) to (B, n, n)."""
    qkv = linear(tokens, attn.qkv.weight.detach().double(), attn.qkv.bias.detach().double())
    q, k, _ = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return attention(q, k, q.shape[-1] ** -0.5, bias)


def axis_windows(block: Any, extent: int, axis: int) -> list[list[Place]]:
    """The windows of one axis. timm shifts, then pads; torchvision pads, then shifts (unless one window holds all)."""
    owner = block.attn if isinstance(block, TorchvisionBlock) else block
    window, shift = owner.window_size[axis], owner.shift_size[axis]
    padded = math.ceil(extent / window) * window
    cycle = extent
    if isinstance(block, TorchvisionBlock):
        cycle, shift = padded, 0 if window >= padded else shift

    def place(index: int) -> Place:
        token = (index + shift) % cycle if index < cycle else extent
        return Place(token if token < extent else None, (index >= padded - window) + (index >= padded - shift))

    return [[place(first + offset) for offset in range(window)] for first in range(0, padded, window)]


def position_bias(attn: Any) -> Tensor:
    """The learned bias of every ordered pair of places in a window, looked up by their offset, (heads, n, n)."""
    height, width = attn.window_size
    table = attn.relative_position_bias_table.detach().double()
    places = list(product(range(height), range(width)))
    rows = [[(y - v + height - 1) * (2 * width - 1) + x - u + width - 1 for v, u in places] for y, x in places]
    return table[torch.tensor(rows)].permute(2, 0, 1)
