"""Twin of timm's PVT v2: overlapping patches, spatially reduced keys, a depthwise convolution inside the MLP."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from twins.arithmetic import attention, convolution, mix, residual, start
from twins.recorder import outputs_of


def aligned_share(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 9 and 11 for the attention, sec. 3.2 and eq. 11 for the MLP's convolution, and a global average."""
    blocks = [block for stage in model.stages for block in stage.blocks]
    maps = reduced_maps(model, images, [block.attn for block in blocks])
    labels = convolution(start(mask), model.patch_embed.proj)
    for stage in model.stages:
        if stage.downsample is not None:
            labels = convolution(labels, stage.downsample.proj)
        for block in stage.blocks:
            keys = key_labels(block.attn, labels).flatten(1)
            labels = residual(labels, mix(maps[block.attn], keys).view_as(labels))
            labels = residual(labels, convolution(labels, block.mlp.dwconv))
    return labels.mean((1, 2))


def reduced_maps(model: Any, images: Tensor, layers: list[Any]) -> dict[Any, Tensor]:
    """Eq. 7 between all queries and the reduced keys, (B, N, M), from the outputs of the ``q`` and ``kv`` layers."""
    seen = outputs_of(model, images, [part for attn in layers for part in (attn.q, attn.kv)])

    def heads(tokens: Tensor, attn: Any) -> Tensor:
        return tokens.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)

    return {
        attn: attention(heads(seen[attn.q], attn), heads(seen[attn.kv].chunk(2, dim=-1)[0], attn), attn.scale)
        for attn in layers
    }


def key_labels(attn: Any, labels: Tensor) -> Tensor:
    """Table 10: spatial reduction is aggregation, by an adaptive pool or by a patchwise convolution."""
    if attn.pool is not None:
        return adaptive_pool(labels, attn.pool.output_size)
    return labels if attn.sr is None else convolution(labels, attn.sr)


def adaptive_pool(labels: Tensor, size: int) -> Tensor:
    """Table 10: Y ← Norm(Σ Y) over the window that an adaptive pool gives each of its ``size`` × ``size`` outputs."""

    def bounds(index: int, extent: int) -> slice:
        return slice(index * extent // size, -(-(index + 1) * extent // size))

    out = torch.empty(labels.shape[0], size, size, dtype=labels.dtype)
    for y, x in product(range(size), range(size)):
        out[:, y, x] = labels[:, bounds(y, labels.shape[1]), bounds(x, labels.shape[2])].mean((1, 2))
    return out
