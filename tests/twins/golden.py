"""The figures of the official code for a small class-token ViT, with the recipe that rebuilds weights and inputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

FIGURES = Path(__file__).parent.parent / "data" / "official_vit.json"


@dataclass
class Golden:
    """One model, one mixed batch, and what the official code said of it."""

    model: VisionTransformer
    images: Tensor
    mask: Tensor
    first: Tensor
    second: Tensor
    num_classes: int
    aligned: Tensor
    area_share: Tensor
    logits_head: Tensor


def golden() -> Golden:
    """Rebuild the case from its figures, by name and seed."""
    figures = json.loads(FIGURES.read_text())
    config, recipe = dict(figures["config"]), figures["fill"]
    batch, size, patch = config.pop("batch"), config["img_size"], config["patch_size"]
    norm = partial(nn.LayerNorm, eps=config.pop("norm_eps"))
    model = VisionTransformer(**config, norm_layer=norm)
    fill(model, **recipe)
    shape = (batch, 3, size, size)
    return Golden(
        model=model,
        images=torch.randn(shape, generator=generator(f"{recipe['seed']}/images/{shape}")),
        mask=boxes(recipe["seed"], batch, size // patch, patch),
        first=torch.tensor(figures["labels_first"]),
        second=torch.tensor(figures["labels_second"]),
        num_classes=config["num_classes"],
        **{name: torch.tensor(figures[name]) for name in ("aligned", "area_share", "logits_head")},
    )


def generator(key: str) -> torch.Generator:
    """A generator seeded by the name of what it draws."""
    return torch.Generator().manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:12], 16))


@torch.no_grad()
def fill(model: Any, seed: str, gain: float, qkv_gain: float) -> None:
    """Every parameter from its own name: vectors near one or zero, the rest scaled by ``gain``."""
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator(f"{seed}/{name}"))
        if parameter.ndim == 1:
            parameter.copy_(0.1 * drawn + float(name.endswith("weight")))
        else:
            parameter.copy_(drawn * gain * (qkv_gain if "qkv" in name else 1.0))


def boxes(seed: str, batch: int, grid: int, patch: int) -> Tensor:
    """One box on the token grid for each sample, as pixels: 0 where the second image was pasted, (B, 1, H, W)."""
    draw: Any = partial(torch.randint, size=(2,), generator=generator(f"{seed}/boxes/{batch}/{grid}"))
    mask = torch.ones(batch, 1, grid, grid)
    for sample in mask:
        y, x = draw(0, grid // 2).tolist()
        height, width = draw(1, grid // 2 + 1).tolist()
        sample[:, y : y + height, x : x + width] = 0.0
    return mask.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
