"""Labels of a small vision transformer by attention rollout, written out by hand, in float64."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from twins.arithmetic import image_share, uniform
from twins.vit import timm_maps


def initial(model: VisionTransformer, mask: Tensor) -> Tensor:
    """Eq. 5: labels of the class token and the patches before the first block, (B, N)."""
    patch = model.patch_embed.patch_size
    patches = uniform(mask.double()[:, 0], patch, patch, (0, 0)).flatten(1)
    return torch.cat([image_share(mask)[:, None].expand(-1, model.num_prefix_tokens), patches], 1)


def mixing_matrices(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Eq. 9 and 11: what the tokens after each block are made of, (B, N, N), rows summing to 1."""
    products: list[Tensor] = []
    for weights in timm_maps(model, images):
        step = (torch.eye(weights.shape[-1], dtype=torch.float64) + weights) / 2
        products.append(step @ products[-1] if products else step)
    return products
