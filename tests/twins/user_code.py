"""Twins of user code: token pruning and merging, ``nn.MultiheadAttention``, global filters, Hugging Face's ViT."""

from __future__ import annotations

import math
from typing import Any

import torch
from models.mixer_ways import SIDE, GlobalFilter
from models.token_ways import complement, split_heads
from torch import Tensor

from twins.arithmetic import attention, convolution, join, mix, residual, start
from twins.recorder import outputs_of
from twins.vit import multihead_map, through_blocks


def evit(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5, 9 and 11; kept tokens keep their label, and those fused to one are mixed by attention (eq. 9)."""
    labels = join(convolution(start(mask), model.patches).flatten(1), mask)
    seen = outputs_of(model, images, [block.norm1 for block in model.blocks])
    for block in model.blocks:
        q, k, _ = split_heads(block.qkv(seen[block.norm1]))
        labels = residual(labels, mix(attention(q, k, q.shape[-1] ** -0.5), labels))
        labels = pruned(block, q, k, labels)
    return labels[:, 0]


def pruned(block: Any, q: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """The class token, the tokens it looks at most, and one for the rest."""
    looks = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)[:, :, 0, 1:].mean(1)
    chosen = looks.topk(math.ceil(block.keep * looks.shape[1]), 1, sorted=True).indices
    parts = [labels[:, :1], labels[:, 1:].gather(1, chosen)]
    if block.fuse:
        rest = complement(chosen, looks.shape[1])
        weights = looks.gather(1, rest)
        fused = (weights * labels[:, 1:].gather(1, rest)).sum(1, keepdim=True)
        parts.append(fused / weights.sum(1, keepdim=True))
    return torch.cat(parts, 1)


def tome(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5, 9 and 11; tokens that meet are averaged."""
    labels = join(convolution(start(mask), model.patches).flatten(1), mask)
    seen = outputs_of(model, images, [block.norm1 for block in model.blocks])
    for block in model.blocks:
        q, k, _ = split_heads(block.qkv(seen[block.norm1]))
        labels = residual(labels, mix(attention(q, k, q.shape[-1] ** -0.5), labels))
        labels = torch.stack([merged(block, one, label) for one, label in zip(k.mean(1), labels, strict=True)])
    return labels[:, 0]


def merged(block: Any, metric: Tensor, labels: Tensor) -> Tensor:
    """One image: the r even tokens with the nearest odd neighbour join it, token by token."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[::2] @ metric[1::2].T
    scores[0] = -math.inf
    best, goal = scores.max(-1)
    order = best.argsort(descending=True).tolist()
    groups = [[label] for label in labels[1::2]]
    for place in order[: block.r]:
        groups[goal[place]].append(labels[::2][place])
    left = [labels[::2][place] for place in sorted(order[block.r :])]
    return torch.stack([*left, *(torch.stack(group).mean() for group in groups)])


def multihead(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5, 7, 9 and 11 through ``nn.MultiheadAttention``, the class token read."""
    labels = join(convolution(start(mask), model.patches).flatten(1), mask)
    seen = outputs_of(model, images, model.norms)
    maps = [multihead_map(layer.attention, seen[norm]) for layer, norm in zip(model.layers, model.norms, strict=True)]
    return through_blocks(labels, maps)[:, 0]


def global_filter(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Sec. 3.2 for GFNet: a circular convolution of the grid by |K| averaged over channels, place by place."""
    labels = convolution(start(mask), model.patches)
    for layer in model.layers:
        labels = residual(labels, circular(layer, labels) if isinstance(layer, GlobalFilter) else labels)
    return labels[:, 0, 0]


def circular(layer: GlobalFilter, labels: Tensor) -> Tensor:
    """Y_p ← Σ |K|_(p-q) Y_q / Σ |K|."""
    spectrum = torch.view_as_complex(layer.filter.detach().double())
    kernel = torch.fft.irfft2(spectrum, s=(SIDE, SIDE), dim=(0, 1)).abs().mean(-1)
    out = torch.zeros_like(labels)
    for row in range(SIDE):
        for column in range(SIDE):
            out += kernel[row, column] * labels.roll((row, column), (1, 2))
    return out / kernel.sum()


def huggingface(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5, 7, 9 and 11 through Hugging Face's ViT, the class token read."""
    vit = model.model.vit
    labels = join(convolution(start(mask), vit.embeddings.patch_embeddings.projection).flatten(1), mask)
    seen = outputs_of(model, images, [layer.layernorm_before for layer in vit.layers])
    return through_blocks(labels, [hf_map(layer, seen[layer.layernorm_before]) for layer in vit.layers])[:, 0]


def hf_map(layer: Any, tokens: Tensor) -> Tensor:
    """Eq. 7 of one layer, from the normed tokens that enter it."""
    heads = layer.attention.num_attention_heads
    q, k = (
        part(tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in (layer.attention.q_proj, layer.attention.k_proj)
    )
    return attention(q, k, layer.attention.scaling)
