"""PVT v1 (Wang et al., ICCV 2021), the backbone of the alignment paper, written as its authors did, and its twin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from twins.arithmetic import convolution, join, mix, residual, start
from twins.pvt import reduced_maps


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Spatial-reduction attention: a strided convolution shrinks the grid that keys and values come from."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, c // self.num_heads).permute(0, 2, 1, 3)
        if self.sr_ratio > 1:
            x = x.permute(0, 2, 1).reshape(b, c, height, width)
            x = self.norm(self.sr(x).reshape(b, c, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(b, -1, 2, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """Attention and MLP, each with its norm before and its skip around."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, sr_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, sr_ratio)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patches that do not overlap, as a normed sequence."""

    def __init__(self, grid: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.patch_size = patch_size
        self.num_patches = grid * grid
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        height, width = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        return self.norm(self.proj(x).flatten(2).transpose(1, 2)), height, width


class Stage(nn.Module):
    """Patch embedding, position embedding and blocks; the last stage puts the class token first."""

    def __init__(self, embed: PatchEmbed, blocks: list[Block], dim: int, class_token: bool) -> None:
        super().__init__()
        self.patch_embed = embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, embed.num_patches + class_token, dim))
        self.pos_drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(blocks)

    def positions(self, height: int, width: int) -> Tensor:
        """The position embedding resampled to the present grid, the class token's part kept."""
        own = self.pos_embed.shape[1] - self.patch_embed.num_patches
        grid = self.pos_embed[:, own:].unflatten(1, (self.patch_embed.grid, -1)).permute(0, 3, 1, 2)
        grid = interpolate(grid, size=(height, width), mode="bilinear")
        return torch.cat((self.pos_embed[:, :own], grid.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x, height, width = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.pos_drop(x + self.positions(height, width))
        for block in self.blocks:
            x = block(x, height, width)
        if self.cls_token is not None:
            return x
        return x.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2).contiguous()


class PyramidVisionTransformer(nn.Module):
    """Four stages, a class token in the last one only, and a linear head on it."""

    def __init__(
        self,
        img_size: int = 64,
        num_classes: int = 5,
        embed_dims: tuple[int, ...] = (16, 32, 48, 64),
        num_heads: tuple[int, ...] = (1, 2, 3, 4),
        mlp_ratios: tuple[int, ...] = (2, 2, 2, 2),
        depths: tuple[int, ...] = (1, 1, 1, 2),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        stages, before, grid = [], 3, img_size
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            patch = 4 if i == 0 else 2
            grid //= patch
            blocks = [Block(dim, num_heads[i], mlp_ratios[i], sr_ratios[i]) for _ in range(depth)]
            stages.append(Stage(PatchEmbed(grid, patch, before, dim), blocks, dim, i == len(depths) - 1))
            before = dim
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(before, eps=1e-6)
        self.head = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(x))[:, 0])


def aligned_share(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Eq. 9 and 11 in every block over aggregated key labels; stage 4's class token begins with λ (eq. 5)."""
    maps = reduced_maps(model, images, [block.attn for stage in model.stages for block in stage.blocks])
    grid = start(mask)
    for stage in model.stages:
        grid = convolution(grid, stage.patch_embed.proj)
        labels = grid.flatten(1) if stage.cls_token is None else join(grid.flatten(1), mask)
        for block in stage.blocks:
            keys = labels if block.attn.sr_ratio == 1 else convolution(labels.view_as(grid), block.attn.sr).flatten(1)
            labels = residual(labels, mix(maps[block.attn], keys))
        if stage.cls_token is None:
            grid = labels.view_as(grid)
    return labels[:, 0]
