"""Twin of timm's MLP-Mixer and ResMLP: tokens mixed by the absolute values of fixed weights."""

from __future__ import annotations

from typing import Any

from timm.models.mlp_mixer import MixerBlock
from torch import Tensor

from twins.arithmetic import absolute_rows, convolution, mix, residual, start


def aligned_share(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Sec. 3.2 for the token-mixing layers, eq. 11 for the skip around them, and a global average."""
    labels = convolution(start(mask), model.stem.proj).flatten(1)
    for block in model.blocks:
        branch = labels
        for layer in token_mixing(block):
            branch = mix(absolute_rows(layer.weight), branch)
        labels = residual(labels, branch)
    return labels.mean(1)


def token_mixing(block: Any) -> list[Any]:
    """The linear layers that run along the tokens: two in a Mixer block, one in a ResMLP block."""
    return [block.mlp_tokens.fc1, block.mlp_tokens.fc2] if isinstance(block, MixerBlock) else [block.linear_tokens]
