"""Twins of the label policies: what each alternative to a rule of the paper means, in float64, model by model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import PatchMerging, SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tlfx
from twins import swin
from twins.arithmetic import convolution, image_share, join, mix, slide, start
from twins.mixer import token_mixing
from twins.recorder import outputs_of


def aligned_share(model: Any, images: Tensor, mask: Tensor, policy: tlfx.Policy) -> Tensor:
    """Share of the first image that reaches the logits, (B,); the model draws from torch's generator as it is."""
    return TWINS[type(model)](model, images, mask, policy)


def vit(model: Any, images: Tensor, mask: Tensor, policy: tlfx.Policy) -> Tensor:
    layers = [m for b in model.blocks for m in (b, b.attn.qkv, b.ls1, b.drop_path1)]
    seen = outputs_of(model, images, [model.norm_pre, *layers])
    labels = join(patchify(start(mask), model.patch_embed.proj, policy).flatten(1), mask)
    tokens = seen[model.norm_pre]
    for block in model.blocks:
        q, k, v = seen[block.attn.qkv].double().unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        branch = mix(heads(softmax(q, k), v, policy), labels)
        gate = gate_of(seen[block.ls1], seen[block.drop_path1], getattr(block.ls1, "gamma", None))
        labels = add(labels, branch, tokens, seen[block.drop_path1], gate[:, None], policy)
        tokens = seen[block]
    return labels[:, 0]


def swin_transformer(model: Any, images: Tensor, mask: Tensor, policy: tlfx.Policy) -> Tensor:
    blocks = [layer for layer in model.modules() if isinstance(layer, swin.BLOCKS)]
    merged = [layer for layer in model.modules() if isinstance(layer, PatchMerging)] + [model.norm]
    parts = [m for b in blocks for m in (b, b.norm1, b.drop_path1)]
    seen = outputs_of(model, images, [model.patch_embed, *merged, *parts])
    share, labels, tokens = image_share(mask), start(mask), seen[model.patch_embed]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            labels = patchify(labels, layer, policy)
        elif isinstance(layer, PatchMerging):
            weights = signed(layer.reduction.weight, policy).mean(0).view(2, 2, -1).sum(-1).T
            kernel = weights if policy.aggregation == "weighted" else torch.ones_like(weights)
            labels, tokens = slide(labels, kernel, (2, 2), (0, 0)), seen[layer]
        elif isinstance(layer, swin.BLOCKS):
            maps = lambda attn, x, bias: heads(*window_parts(attn, x, bias), policy)  # noqa: E731
            branch = swin.window_mixing(layer, seen[layer.norm1], labels, share, maps)
            labels = add(labels, branch, tokens, seen[layer.drop_path1], torch.ones(len(mask), 1, 1), policy)
            tokens = seen[layer]
    return pool(labels.flatten(1), seen[model.norm].flatten(1, 2), policy)


def mixer(model: Any, images: Tensor, mask: Tensor, policy: tlfx.Policy) -> Tensor:
    parts = [m for b in model.blocks for m in (b, b.norm1, b.mlp_tokens.act, b.mlp_tokens)]
    seen = outputs_of(model, images, [model.stem, *parts, model.norm])
    labels, tokens = patchify(start(mask), model.stem.proj, policy).flatten(1), seen[model.stem]
    for block in model.blocks:
        branch = labels
        entering = (seen[block.norm1], seen[block.mlp_tokens.act].mT)
        for layer, value in zip(token_mixing(block), entering, strict=True):
            weight = signed(layer.weight, policy) * sizes(value, policy)[:, None]
            branch = mix(weight / weight.sum(-1, keepdim=True), branch)
        labels = add(labels, branch, tokens, seen[block.mlp_tokens].mT, torch.ones(len(mask), 1), policy)
        tokens = seen[block]
    return pool(labels, seen[model.norm], policy)


def convnext(model: Any, images: Tensor, mask: Tensor, policy: tlfx.Policy) -> Tensor:
    blocks = [b for stage in model.stages for b in stage.blocks]
    before = [stage.downsample for stage in model.stages]
    seen = outputs_of(model, images, [*before, *blocks, *(b.drop_path for b in blocks)])
    labels = start(mask)
    for stage in model.stages:
        for layer in (*(model.stem if stage is model.stages[0] else ()), *stage.downsample.modules()):
            labels = patchify(labels, layer, policy) if isinstance(layer, nn.Conv2d) else labels
        tokens = seen[stage.downsample]
        for block in stage.blocks:
            kernel = signed(block.conv_dw.weight, policy).mean((0, 1))
            count = sizes(tokens.movedim(1, -1).flatten(1, 2), policy).view_as(labels)
            total, mass = (
                slide(x, kernel, block.conv_dw.stride, block.conv_dw.padding) for x in (labels * count, count)
            )
            branch = total / mass
            gate = block.gamma.detach().double().abs().mean().expand(len(mask), 1, 1)
            labels = add(labels, branch, tokens.movedim(1, -1), seen[block.drop_path].movedim(1, -1), gate, policy)
            tokens = seen[block]
    return pool(labels.flatten(1), tokens.movedim(1, -1).flatten(1, 2), policy)


TWINS = {VisionTransformer: vit, SwinTransformer: swin_transformer, MlpMixer: mixer, ConvNeXt: convnext}


# the alternatives


def add(skip: Tensor, branch: Tensor, x: Tensor, y: Tensor, gate: Tensor, policy: tlfx.Policy) -> Tensor:
    """Labels (B, …) of x + y, values (B, …, C); the branch y has been multiplied with ``gate``."""
    if policy.residual == "skip":
        return branch
    one, other = torch.ones_like(skip), torch.ones_like(skip)
    if policy.residual == "norm":
        one, other = (v.double().square().sum(-1).sqrt() for v in (x, y))
    elif policy.residual == "gated":
        other = gate.double()
    return (one * skip + other * branch) / (one + other)


def heads(weights: Tensor, values: Tensor, policy: tlfx.Policy) -> Tensor:
    """One map (B, N, N) from the weights (B, heads, N, N) and values (B, heads, N, d) of all heads."""
    if policy.heads == "mean" and policy.values == "equal":
        return weights.mean(1)
    total = torch.zeros_like(weights[:, 0])
    by_norm = replace(policy, values="norm") if policy.values == "equal" else policy
    for head in range(weights.shape[1]):
        total = total + weights[:, head] * sizes(values[:, head], by_norm)[:, None]
    return total / total.sum(-1, keepdim=True)


def pool(labels: Tensor, values: Tensor, policy: tlfx.Policy) -> Tensor:
    """The label (B,) of the mean of tokens, values (B, N, C), labels (B, N)."""
    size = sizes(values, policy)
    return (labels * size).sum(1) / size.sum(1)


def sizes(values: Tensor, policy: tlfx.Policy) -> Tensor:
    """What tokens count beside their weights, (B, N) from values (B, N, C)."""
    values = values.double()
    if policy.values == "equal":
        return torch.ones_like(values[..., 0])
    if policy.values == "deviation":
        values = values - values.sum(1, keepdim=True) / values.shape[1]
    return values.square().sum(-1).sqrt()


def signed(weight: Tensor, policy: tlfx.Policy) -> Tensor:
    """|W|, or its positive part."""
    weight = weight.detach().double()
    return torch.where(weight > 0, weight, 0.0) if policy.weights == "signed" else weight.abs()


def patchify(labels: Tensor, conv: nn.Conv2d, policy: tlfx.Policy) -> Tensor:
    """Patches that do not overlap, uniform or by |K| averaged over channels."""
    if policy.aggregation == "uniform":
        return convolution(labels, conv)
    return slide(labels, signed(conv.weight, policy).mean((0, 1)), conv.stride, conv.padding)


# what the models compute


def softmax(q: Tensor, k: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Eq. 7, head by head."""
    return (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)


def window_parts(attn: Any, tokens: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and values of the heads in one window."""
    qkv = nn.functional.linear(tokens, attn.qkv.weight.detach().double(), attn.qkv.bias.detach().double())
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return softmax(q, k, bias), v


def gate_of(before: Tensor, after: Tensor, gamma: Tensor | None) -> Tensor:
    """LayerScale times stochastic depth, by sample; that of depth from what it did to the largest element."""
    place = before.flatten(1).abs().argmax(1, keepdim=True)
    depth = (after.flatten(1).gather(1, place) / before.flatten(1).gather(1, place))[:, 0].double()
    return depth * (1.0 if gamma is None else gamma.detach().double().abs().mean())
