"""A small image classifier that uses both token mixers."""

from __future__ import annotations

from torch import Tensor, nn

from tlfx_neighbourhood.operator import attention
from tlfx_neighbourhood.smoothing import Smoothing

__all__ = ["Classifier", "classifier"]


class Attention(nn.Module):
    """Neighbourhood attention of tokens (batch, height, width, channels)."""

    def __init__(self, channels: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, self.heads, channels // self.heads)
        mixed = attention(*qkv.permute(3, 0, 4, 1, 2, 5), self.size)
        out: Tensor = self.out(mixed.permute(0, 2, 3, 1, 4).flatten(3))
        return out


class Block(nn.Module):
    """Both mixers and an MLP, each on a residual branch."""

    def __init__(self, channels: int, heads: int, size: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attention = Attention(channels, heads, size)
        self.smoothing = Smoothing(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.smoothing(self.norm2(x).flatten(1, 2)).view_as(x)
        out: Tensor = x + self.mlp(self.norm3(x))
        return out


class Classifier(nn.Module):
    """Patches of 4 × 4 pixels, blocks, the mean over tokens and a linear head."""

    def __init__(self, num_classes: int, channels: int, depth: int, heads: int, size: int) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 32, 32)}
        self.patch_embed = nn.Conv2d(3, channels, 4, 4)
        self.blocks = nn.Sequential(*(Block(channels, heads, size) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patch_embed(images).permute(0, 2, 3, 1))
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


def classifier(num_classes: int = 10, channels: int = 32, depth: int = 2, heads: int = 4, size: int = 3) -> Classifier:
    """A classifier of images of 32 × 32 pixels or any other multiple of 4."""
    return Classifier(num_classes, channels, depth, heads, size)
