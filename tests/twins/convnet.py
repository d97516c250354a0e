"""Twin of timm's convolutional networks: ConvNeXt and ResNet with basic or bottleneck blocks."""

from __future__ import annotations

from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from twins.arithmetic import convolution, residual, start, uniform


def aligned_share(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Sec. 3.2 for every convolution, eq. 11 for every skip, and a global average."""
    through = convnext if isinstance(model, ConvNeXt) else resnet
    return through(model, start(mask)).mean((1, 2))


def convnext(model: Any, labels: Tensor) -> Tensor:
    """Stem and downsampling aggregate their patches; the depthwise convolution is the only branch that mixes."""
    labels = along(labels, model.stem)
    for stage in model.stages:
        labels = along(labels, stage.downsample)
        for block in stage.blocks:
            labels = residual(labels, convolution(labels, block.conv_dw))
    return labels


def resnet(model: Any, labels: Tensor) -> Tensor:
    """A strided 1 × 1 convolution keeps every second label; the max pool is uniform over valid places."""
    labels = uniform(convolution(labels, model.conv1), (3, 3), (2, 2), (1, 1))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            skip = labels if block.downsample is None else along(labels, block.downsample)
            labels = residual(skip, branch(labels, block))
    return labels


def branch(labels: Tensor, block: Any) -> Tensor:
    """The two convolutions of a basic block, the three of a bottleneck."""
    convs = [block.conv1, block.conv2] + ([] if isinstance(block, BasicBlock) else [block.conv3])
    for conv in convs:
        labels = convolution(labels, conv)
    return labels


def along(labels: Tensor, layers: Any) -> Tensor:
    """Every convolution of a chain in turn; norms and activations leave labels in place."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            labels = convolution(labels, layer)
    return labels
