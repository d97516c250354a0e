"""torchvision's video, segmentation and detection models, small enough for a test; no weights are downloaded."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import timm
import torchvision  # type: ignore[import-untyped]
from torch import nn
from torchvision.models import detection, segmentation, video  # type: ignore[import-untyped]
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2  # type: ignore[import-untyped]
from torchvision.models.video import mvit as mvit_module  # type: ignore[import-untyped]
from torchvision.models.video.mvit import MSBlockConfig, MViT  # type: ignore[import-untyped]
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet  # type: ignore[import-untyped]
from torchvision.models.video.swin_transformer import SwinTransformer3d  # type: ignore[import-untyped]

from models.entry import Entry
from tlfx import CaptureError

CLASSES = 5


def r3d() -> nn.Module:
    """A 3D ResNet of one block a stage."""
    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=CLASSES)


def swin3d() -> nn.Module:
    """Video Swin with windows that are shifted and padded."""
    return SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [4, 4, 4], num_classes=CLASSES)


def swin_v2() -> nn.Module:
    """Swin v2: cosine attention and a continuous relative bias."""
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return SwinTransformer(**sizes, block=SwinTransformerBlockV2, num_classes=CLASSES)


def mvit() -> nn.Module:
    """A multiscale ViT: queries, keys and values pooled by convolutions in space and time."""
    block = partial(MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    blocks = [
        block(num_heads=1, input_channels=16, output_channels=32, stride_q=[1, 1, 1]),
        block(num_heads=2, input_channels=32, output_channels=32, stride_q=[1, 2, 2]),
    ]
    return MViT((32, 32), 8, blocks, residual_pool=False, residual_with_cls_embed=True, rel_pos_embed=False,
                proj_after_attn=False, num_classes=CLASSES)  # fmt: skip


def full_mvit(name: str) -> nn.Module:
    """A published multiscale ViT for shorter and smaller clips than its builder takes."""
    with mock.patch.object(mvit_module, "_mvit", lambda weights, progress, **settings: settings):
        settings: Any = getattr(video, name)()
    plain = {"rel_pos_embed": False, "proj_after_attn": False}
    return MViT(**{**plain, **settings, "spatial_size": (64, 64), "temporal_size": 8, "num_classes": CLASSES})


def feature_maps(name: str) -> nn.Module:
    """timm's feature pyramids: a list of maps."""
    return timm.create_model(name, features_only=True)


dense = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}

ENTRIES = {
    "r3d (one block a stage)": Entry("torchvision", r3d, (3, 4, 32, 32)),
    "r3d_18": Entry("torchvision", partial(video.r3d_18, num_classes=CLASSES), (3, 4, 64, 64)),
    "mc3_18": Entry("torchvision", partial(video.mc3_18, num_classes=CLASSES), (3, 4, 32, 32)),
    "r2plus1d_18": Entry("torchvision", partial(video.r2plus1d_18, num_classes=CLASSES), (3, 4, 32, 32)),
    "s3d": Entry("torchvision", partial(video.s3d, num_classes=CLASSES), (3, 16, 224, 224)),
    "swin3d (small)": Entry("torchvision", swin3d, (3, 4, 36, 36)),
    "swin3d_t": Entry("torchvision", partial(video.swin3d_t, num_classes=CLASSES), (3, 8, 64, 64)),
    "mvit (small)": Entry("torchvision", mvit, (3, 8, 32, 32)),
    "mvit_v1_b": Entry("torchvision", partial(full_mvit, "mvit_v1_b"), (3, 8, 64, 64)),
    "mvit_v2_s": Entry("torchvision", partial(full_mvit, "mvit_v2_s"), (3, 8, 64, 64)),
    "swin_v2 (small)": Entry("torchvision", swin_v2),
    "fcn_resnet50": Entry("torchvision", partial(segmentation.fcn_resnet50, **dense), (3, 64, 64)),
    "fcn_resnet50 with auxiliary head": Entry(
        "torchvision",
        partial(segmentation.fcn_resnet50, aux_loss=True, **dense),
        (3, 64, 64),
    ),
    "deeplabv3_resnet50": Entry("torchvision", partial(segmentation.deeplabv3_resnet50, **dense), (3, 64, 64)),
    "lraspp_mobilenet_v3_large": Entry(
        "torchvision",
        partial(segmentation.lraspp_mobilenet_v3_large, **dense),
        (3, 64, 64),
    ),
    "features of test_resnet": Entry("timm", partial(feature_maps, "test_resnet"), (3, 64, 64)),
    "features of test_convnext": Entry("timm", partial(feature_maps, "test_convnext"), (3, 64, 64)),
    "features of swin": Entry("timm", partial(feature_maps, "swin_tiny_patch4_window7_224"), (3, 224, 224)),
    "features of test_vit": Entry("timm", partial(feature_maps, "test_vit"), (3, 160, 160)),
    "fasterrcnn_resnet50_fpn": Entry(
        "torchvision",
        partial(detection.fasterrcnn_resnet50_fpn, **dense),
        (3, 64, 64),
        error=CaptureError,
        reason="depends on the data",
    ),
    "feature pyramid of resnet18": Entry(
        "torchvision",
        partial(
            torchvision.models.detection.backbone_utils.resnet_fpn_backbone, backbone_name="resnet18", weights=None
        ),
        (3, 64, 64),
    ),
}
