"""UPerNet of transformers on a Swin, or on a DeiT with a neck that makes maps of four sizes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from checkpoints.convert import Source, identify, write
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from transformers import SwinBackbone, SwinConfig, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead
from weights import read_weights

from downstream.options import backbone_file
from tlfx.errors import InputError, ModelError

__all__ = ["BACKBONES", "Segmenter", "build"]

SWIN: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swin_small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swin_base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
}
DEIT = {f"deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}
BACKBONES = (*SWIN, *DEIT)
LEVELS = 4
"""Maps of a pyramid; a Swin has one for each of its stages."""


class Segmenter(nn.Module):
    """Logits (B, classes, H, W) of images (B, 3, H, W), as a tuple; in training, those of the auxiliary head follow.

    The parts and their names are those of UperNetForSemanticSegmentation, which returns the auxiliary logits only as a
    part of the loss.
    """

    def __init__(self, backbone: nn.Module, decode_head: nn.Module, auxiliary_head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decode_head, self.auxiliary_head = backbone, decode_head, auxiliary_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        maps = self.backbone(images)
        maps = getattr(maps, "feature_maps", maps)
        heads = (self.decode_head, self.auxiliary_head) if self.training else (self.decode_head,)
        size = images.shape[2:]
        return tuple(F.interpolate(head(maps), size=size, mode="bilinear", align_corners=False) for head in heads)


class DeitPyramid(nn.Module):
    """The maps after each quarter of the blocks of a DeiT at 4, 2, 1 and 1/2 times their size (MultiLevelNeck of
    mmsegmentation). With fewer than four blocks, some maps are of the same block.
    """

    def __init__(self, name: str, options: Namespace) -> None:
        super().__init__()
        given: dict[str, Any] = {"img_size": options.crop_size, "drop_path_rate": options.drop_path}
        given |= {"features_only": True, "dynamic_img_size": True, "dynamic_img_pad": True, **options.model_kwargs}
        depth = given.get("depth", 12)
        blocks = [max(depth * (i + 1) // LEVELS - 1, 0) for i in range(LEVELS)]
        read = list(dict.fromkeys(blocks))  # timm returns the map of a block once
        features: Any = timm.create_model(DEIT[name], out_indices=read, **given)
        self.model: nn.Module = features
        self.places = [read.index(block) for block in blocks]
        self.channels: list[int] = [features.feature_info.channels()[place] for place in self.places]
        self.lateral = nn.ModuleList(nn.Conv2d(width, width, 1) for width in self.channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, 4h, 4w) to (B, C, h/2, w/2) of images (B, 3, H, W) with h × w patches."""
        maps = self.model(images)
        parts = zip((maps[i] for i in self.places), self.lateral, self.smooth, (4.0, 2.0, 1.0, 0.5), strict=True)
        return [smooth(_scaled(lateral(x), scale)) for x, lateral, smooth, scale in parts]


def _scaled(x: Tensor, scale: float) -> Tensor:
    """A map, resized; at least one pixel is left."""
    size = [max(int(length * scale), 1) for length in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def build(options: Namespace) -> Segmenter:
    """The model of the options, with random weights, or those of ``--backbone-checkpoint`` in its backbone.

    Raises InputError for arguments that a backbone does not take, ModelError for weights of another backbone.
    """
    torch.manual_seed(options.seed)
    file = backbone_file(options)
    source = None if file is None else _weights(file)
    try:
        made = _on_swin(options, source) if options.backbone in SWIN else _on_deit(options, source)
    except (TypeError, AttributeError) as error:
        raise InputError(f"--model-kwargs do not fit {options.backbone}: {error}") from error
    for name, module in made.named_modules():
        if isinstance(module, nn.Conv2d) and "head" in name:  # as mmsegmentation starts
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if name.endswith("classifier"):
                nn.init.normal_(module.weight, std=0.01)
    return made


def _weights(file: Path) -> Source:
    return identify(read_weights(file, use_ema=True, flag="--backbone-checkpoint"))


def _on_swin(options: Namespace, source: Source | None) -> Segmenter:
    settings = SWIN[options.backbone] | {"drop_path_rate": options.drop_path, **options.model_kwargs}
    config = SwinConfig(**{**settings, "out_features": [f"stage{i + 1}" for i in range(len(settings["depths"]))]})
    read = auxiliary_level(len(config.depths))
    heads = _heads(options, backbone_config=config, auxiliary_in_channels=config.embed_dim * 2**read)
    net: Any = UperNetForSemanticSegmentation(heads)
    net.auxiliary_head.in_index = read
    if source is not None:
        net.backbone = _load_swin(config, source, options)
    net.backbone.swin.layernorm.requires_grad_(False)  # of the last stage for classifiers, unused here
    return Segmenter(net.backbone, net.decode_head, net.auxiliary_head)


def _load_swin(config: SwinConfig, source: Source, options: Namespace) -> nn.Module:
    if source.table.family != "swin":
        raise _other(source, options)
    weights = {key: value for key, value in write(source, "hf")[0].items() if not key.startswith("classifier")}
    try:
        made: Any = SwinBackbone.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    except RuntimeError as error:  # shapes
        raise _other(source, options) from error
    loaded, report = made
    expected = {key for key in report["missing_keys"] if not key.startswith("hidden_states_norms.")}
    if expected or report["unexpected_keys"]:
        raise _other(source, options)
    swin: nn.Module = loaded
    return swin


def _other(source: Source, options: Namespace) -> ModelError:
    return ModelError(
        f"--backbone-checkpoint {options.backbone_checkpoint} holds a {source.table.family} of another size or kind "
        f"than --backbone {options.backbone} with these --model-kwargs"
    )


def _on_deit(options: Namespace, source: Source | None) -> Segmenter:
    backbone = DeitPyramid(options.backbone, options)
    if source is not None:
        _load_deit(backbone.model, source, options)
    read, channels = auxiliary_level(LEVELS), backbone.channels
    config = _heads(options, auxiliary_in_channels=channels[read])
    heads: list[Any] = [kind(config, channels) for kind in (UperNetHead, UperNetFCNHead)]
    heads[1].in_index = read
    return Segmenter(backbone, *heads)


def _load_deit(model: nn.Module, source: Source, options: Namespace) -> None:
    if source.table.family != "deit":
        raise _other(source, options)
    own = model.state_dict()
    inner = next(iter(own)).removesuffix("cls_token")  # the features of timm hold the model as a part
    weights = {f"{inner}{key}": value for key, value in write(source, "timm")[0].items()}
    patches: Any = model.get_submodule(f"{inner}patch_embed")
    key, grid = f"{inner}pos_embed", list(patches.grid_size)
    if own[key].shape[1] != weights[key].shape[1]:
        weights[key] = resample_abs_pos_embed(weights[key], grid, num_prefix_tokens=1)
    weights = {key: value for key, value in weights.items() if key in own}
    if weights.keys() != own.keys() or any(weights[key].shape != own[key].shape for key in own):
        raise _other(source, options)
    model.load_state_dict(weights)


def auxiliary_level(levels: int) -> int:
    """The map that the auxiliary head reads: the last but one, which is the third of four.

    >>> auxiliary_level(4), auxiliary_level(1)
    (2, 0)
    """
    return max(levels - 2, 0)


def _heads(options: Namespace, **settings: Any) -> UperNetConfig:
    """The configuration of the heads: 512 channels, and 256 for the auxiliary one."""
    given = {"auxiliary_channels": -(-options.head_width // 2), "num_labels": options.num_classes, **settings}
    return UperNetConfig(hidden_size=options.head_width, **given)
