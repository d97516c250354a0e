"""Four small architectures of timm, without batch norm: attention, shifted windows, token MLPs and convolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from data import NUM_CLASSES
from timm.layers.classifier import NormMlpClassifierHead
from timm.layers.norm import LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXtStage
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from training import SIZE

__all__ = ["ARCHITECTURES", "ATTENTION", "build"]


def vit() -> nn.Module:
    """Three blocks of width 48 on 7×7 tokens and a class token."""
    return VisionTransformer(img_size=SIZE, patch_size=4, embed_dim=48, depth=3, num_heads=3, num_classes=NUM_CLASSES)


def swin() -> nn.Module:
    """Two blocks on 14×14 tokens in windows of 7×7, plain and shifted, then two on 7×7 merged tokens; drop path 0.1."""
    return SwinTransformer(
        img_size=SIZE,
        patch_size=2,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=7,
        mlp_ratio=2.0,
        num_classes=NUM_CLASSES,
    )


def mixer() -> nn.Module:
    """Four blocks of width 64 on 7×7 tokens."""
    return MlpMixer(img_size=SIZE, patch_size=4, embed_dim=64, num_blocks=4, num_classes=NUM_CLASSES)


def convnext() -> nn.Module:
    """Two stages of two blocks, on 7×7 and, after downsampling, 3×3 positions; LayerScale starts at 1e-6.

    The class of timm has four stages, for which these pictures are too small.
    """
    stage = partial(ConvNeXtStage, depth=2, ls_init_value=1e-6, norm_layer=LayerNorm2d, norm_layer_cl=LayerNorm)
    return nn.Sequential(
        nn.Conv2d(3, 48, kernel_size=4, stride=4),
        LayerNorm2d(48),
        stage(48, 48, stride=1, kernel_size=3),
        stage(48, 96, stride=2, kernel_size=3),
        NormMlpClassifierHead(96, NUM_CLASSES, norm_layer=LayerNorm2d),
    )


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"vit": vit, "swin": swin, "mixer": mixer, "convnext": convnext}
ATTENTION = ("vit", "swin")
"""Architectures with attention, which TransMix needs."""


def build(architecture: str, seed: int) -> nn.Module:
    """One of ARCHITECTURES. The seed determines its weights."""
    torch.manual_seed(seed)
    return ARCHITECTURES[architecture]()
