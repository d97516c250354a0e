"""Twin of plain vision transformers: timm's ViT and DeiT, and torchvision's ``vit_b_16``."""

from __future__ import annotations

from typing import Any

import torchvision  # type: ignore[import-untyped]
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.nn.functional import linear

from twins.arithmetic import attention, convolution, join, mix, residual, start
from twins.recorder import outputs_of


def aligned_share(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5 at the start, then eq. 9 and 11 in every block; the MLP and its skip hold equal labels."""
    if isinstance(model, torchvision.models.VisionTransformer):
        patches = convolution(start(mask), model.conv_proj).flatten(1)
        return through_blocks(join(patches, mask), torchvision_maps(model, images))[:, 0]
    patches = convolution(start(mask), model.patch_embed.proj).flatten(1)
    labels = join(patches, mask, count=model.num_prefix_tokens)
    return pool(model, through_blocks(labels, timm_maps(model, images)))


def through_blocks(labels: Tensor, maps: list[Tensor]) -> Tensor:
    """Eq. 9 and 11: Y ← Norm(Y + A·Y), block by block."""
    for weights in maps:
        labels = residual(labels, mix(weights, labels))
    return labels


def timm_maps(model: Any, images: Tensor) -> list[Tensor]:
    """Eq. 7 from the queries and keys as they leave their (often empty) norms, (B, heads, N, d)."""
    layers = [block.attn for block in model.blocks]
    seen = outputs_of(model, images, [norm for attn in layers for norm in (attn.q_norm, attn.k_norm)])
    return [attention(seen[attn.q_norm], seen[attn.k_norm], attn.scale) for attn in layers]


def torchvision_maps(model: Any, images: Tensor) -> list[Tensor]:
    """Eq. 7 from the normed tokens that enter each ``nn.MultiheadAttention``."""
    seen = outputs_of(model, images, [block.ln_1 for block in model.encoder.layers])
    return [multihead_map(block.self_attention, seen[block.ln_1]) for block in model.encoder.layers]


def multihead_map(layer: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Eq. 7 of a packed self-attention layer, from its own in-projection."""
    qkv = linear(tokens.double(), layer.in_proj_weight.detach().double(), layer.in_proj_bias.detach().double())
    q, k, _ = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return attention(q, k, layer.head_dim**-0.5)


def pool(model: Any, labels: Tensor) -> Tensor:
    """Table 10: the class token's row, both rows of a distilled pair averaged, or all patches aggregated."""
    if isinstance(model, VisionTransformerDistilled):
        return residual(labels[:, 0], labels[:, 1])
    if model.global_pool == "token":
        return labels[:, 0]
    return labels[:, model.num_prefix_tokens :].mean(1)
