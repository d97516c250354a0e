"""Small real models of every family that has a twin, with weights that make attention and norms matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torchvision  # type: ignore[import-untyped]
from helpers import CLASSES
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from twins import convnet, mixer, pvt, pvt_v1, swin, vit

Twin = Callable[[Any, Tensor, Tensor], Tensor]


class Family(NamedTuple):
    """How to build a model of the family, its twin, and the image size."""

    build: Callable[[], nn.Module]
    twin: Twin
    size: int

    def model(self) -> Any:
        """A fresh model, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return randomise(self.build())


@torch.no_grad()
def randomise(model: Any) -> nn.Module:
    """Norms off one and zero, matrices that keep the scale of their input, queries and keys large enough to choose."""
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            values.uniform_(0.5, 2.0)
        elif values.is_floating_point() and values.ndim == 1:
            values.normal_(float(name.endswith(("weight", "gamma", "ls1", "ls2"))), 0.2)
        elif isinstance(values, nn.Parameter) and values.ndim > 1:
            gain = 2.0 if name.endswith(("qkv.weight", ".q.weight", ".kv.weight", "in_proj_weight")) else 1.0
            values.normal_(0.0, gain * values[0].numel() ** -0.5)
    return model


def unfused(build: Callable[[], nn.Module]) -> nn.Module:
    """The same model with attention written out: scores, softmax, product."""
    model = build()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return model


def no_drop_path(build: Callable[..., nn.Module]) -> nn.Module:
    """torchvision's own configuration with every branch kept."""
    model = build(num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, torchvision.ops.StochasticDepth):
            module.p = 0.0
    return model


small_vit = partial(
    VisionTransformer, img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=CLASSES
)
small_swin = partial(
    SwinTransformer,
    img_size=48,
    patch_size=4,
    embed_dim=16,
    depths=(2, 2),
    num_heads=(2, 4),
    window_size=4,
    num_classes=CLASSES,
    drop_path_rate=0.0,
)
small_torchvision_swin = partial(
    torchvision.models.SwinTransformer,
    patch_size=[4, 4],
    embed_dim=16,
    depths=[2, 2],
    num_heads=[2, 4],
    window_size=[4, 4],
    stochastic_depth_prob=0.0,
    num_classes=CLASSES,
)
small_pvt = partial(
    PyramidVisionTransformerV2,
    embed_dims=(16, 32, 48, 64),
    depths=(1, 2, 1, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(2, 2, 2, 2),
    num_classes=CLASSES,
)
small_mixer = partial(MlpMixer, img_size=32, patch_size=8, num_blocks=3, embed_dim=32, num_classes=CLASSES)
small_convnext = partial(ConvNeXt, depths=(1, 2, 2, 1), dims=(8, 16, 24, 32), num_classes=CLASSES)
small_resnet = partial(ResNet, channels=(16, 24, 32, 40), num_classes=CLASSES, zero_init_last=False)

FAMILIES = {
    "vit": Family(small_vit, vit.aligned_share, 32),
    "vit-unfused": Family(partial(unfused, small_vit), vit.aligned_share, 32),
    "vit-average": Family(partial(small_vit, global_pool="avg", class_token=False), vit.aligned_share, 32),
    "vit-average-with-class-token": Family(partial(small_vit, global_pool="avg"), vit.aligned_share, 32),
    "vit-registers": Family(
        partial(small_vit, reg_tokens=4, init_values=1.0, qk_norm=True, no_embed_class=True), vit.aligned_share, 32
    ),
    "deit-distilled": Family(
        partial(
            VisionTransformerDistilled,
            img_size=32,
            patch_size=8,
            embed_dim=48,
            depth=3,
            num_heads=3,
            num_classes=CLASSES,
        ),
        vit.aligned_share,
        32,
    ),
    "torchvision-vit": Family(
        partial(
            torchvision.models.VisionTransformer,
            image_size=32,
            patch_size=8,
            num_layers=3,
            num_heads=3,
            hidden_dim=48,
            mlp_dim=96,
            num_classes=CLASSES,
        ),
        vit.aligned_share,
        32,
    ),
    "swin": Family(small_swin, swin.aligned_share, 48),
    "swin-unfused": Family(partial(unfused, small_swin), swin.aligned_share, 48),
    "swin-padded": Family(partial(small_swin, img_size=44), swin.aligned_share, 44),
    "torchvision-swin": Family(small_torchvision_swin, swin.aligned_share, 48),
    "torchvision-swin-padded": Family(small_torchvision_swin, swin.aligned_share, 44),
    "pvt-v2": Family(partial(small_pvt, sr_ratios=(8, 4, 2, 1)), pvt.aligned_share, 64),
    "pvt-v2-linear": Family(partial(small_pvt, linear=True), pvt.aligned_share, 64),
    "pvt-v1": Family(pvt_v1.PyramidVisionTransformer, pvt_v1.aligned_share, 64),
    "mixer": Family(small_mixer, mixer.aligned_share, 32),
    "resmlp": Family(
        partial(small_mixer, mlp_ratio=2, block_layer=ResBlock, norm_layer=Affine), mixer.aligned_share, 32
    ),
    "convnext": Family(partial(small_convnext, ls_init_value=1.0), convnet.aligned_share, 64),
    "convnext-v2": Family(
        partial(small_convnext, use_grn=True, ls_init_value=None, conv_mlp=True), convnet.aligned_share, 72
    ),
    "resnet-basic": Family(partial(small_resnet, block=BasicBlock, layers=(1, 2, 1, 1)), convnet.aligned_share, 64),
    "resnet-bottleneck": Family(
        partial(small_resnet, block=Bottleneck, layers=(2, 1, 1, 1)), convnet.aligned_share, 72
    ),
}

FULL_SIZE = {
    "deit_tiny_patch16_224": Family(
        partial(timm.create_model, "deit_tiny_patch16_224", num_classes=CLASSES), vit.aligned_share, 224
    ),
    "swin_tiny_patch4_window7_224": Family(
        partial(timm.create_model, "swin_tiny_patch4_window7_224", num_classes=CLASSES, drop_path_rate=0.0),
        swin.aligned_share,
        224,
    ),
    "vit_b_16": Family(partial(torchvision.models.vit_b_16, image_size=64, num_classes=CLASSES), vit.aligned_share, 64),
    "swin_t": Family(partial(no_drop_path, torchvision.models.swin_t), swin.aligned_share, 224),
}
