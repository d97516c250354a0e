"""Mask R-CNN of torchvision on a Swin of timm, with a feature pyramid."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from checkpoints.convert import identify, write
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign  # type: ignore[import-untyped]
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # type: ignore[import-untyped]
from weights import read_weights

from downstream.options import backbone_file
from tlfx.errors import InputError, ModelError
from tlfx.zoo.weights import differences

__all__ = ["BACKBONES", "build"]

BACKBONES = {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")}


class SwinPyramid(nn.Module):
    """Maps of the stages of a Swin after a norm each, by a feature pyramid, and one of half the size of the last.

    strides: pixels of an image in a pixel of each map.
    """

    def __init__(self, body: Any, width: int) -> None:
        super().__init__()
        channels: list[int] = body.feature_info.channels()
        self.body = body
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.fpn = FeaturePyramidNetwork(channels, width, LastLevelMaxPool())
        self.out_channels = width
        reductions: list[int] = body.feature_info.reduction()
        self.strides = [*reductions, 2 * reductions[-1]]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """A map (B, width, H/stride, W/stride) for each of the strides: 4 to 64 with four stages and patches of 4."""
        maps = zip(self.norms, self.body(images), strict=True)
        pyramid: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((str(level), norm(x).movedim(3, 1)) for level, (norm, x) in enumerate(maps))
        )
        return pyramid


def build(options: Namespace) -> nn.Module:
    """The model of the options, with random weights, or those of ``--backbone-checkpoint`` in its backbone.

    Raises InputError for arguments that a backbone does not take, ModelError for weights of another backbone.
    """
    torch.manual_seed(options.seed)
    settings = {"drop_path_rate": options.drop_path, **options.model_kwargs}
    try:
        body = timm.create_model(BACKBONES[options.backbone], features_only=True, strict_img_size=False, **settings)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"--model-kwargs do not fit {options.backbone}: {error}") from error
    if (file := backbone_file(options)) is not None:
        _load(body, file, options.backbone)
    width, classes = options.pyramid_width, options.num_classes + 1  # with the background
    pyramid = SwinPyramid(body, width)
    stages = [str(level) for level in range(len(pyramid.norms))]
    made: nn.Module = MaskRCNN(
        pyramid,
        min_size=tuple(options.min_size),
        max_size=options.max_size,
        rpn_anchor_generator=_anchors(pyramid.strides),
        box_roi_pool=MultiScaleRoIAlign(stages, output_size=7, sampling_ratio=2),
        mask_roi_pool=MultiScaleRoIAlign(stages, output_size=14, sampling_ratio=2),
        box_head=TwoMLPHead(49 * width, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, classes),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
    )
    return made


def _anchors(strides: Sequence[int]) -> AnchorGenerator:
    """Anchors of three shapes, whose side is eight times the stride of their map, as in torchvision and mmdetection."""
    return AnchorGenerator(tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides))


def _load(body: nn.Module, file: Path, backbone: str) -> None:
    source = identify(read_weights(file, use_ema=True, flag="--backbone-checkpoint"))
    told = f"--backbone-checkpoint {file} holds a {source.table.family} of another size or kind than {backbone}"
    if source.table.family != "swin":
        raise ModelError(told)
    named: dict[str, Any] = {
        key.replace("layers.", "layers_", 1): value  # as timm names the stages of features
        for key, value in write(source, "timm")[0].items()
        if not key.startswith(("head.", "norm."))
    }
    if different := differences(named, body.state_dict()):
        raise ModelError(f"{told}: {different}")
    body.load_state_dict(named)
