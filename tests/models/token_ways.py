"""Tokens that are dropped, merged or sampled by what the image holds, as the published code writes it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention_ways import CLASSES, DIM, HEADS
from models.entry import Entry
from tlfx import CaptureError


def split_heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, tokens, 3 · dim) to three of (batch, heads, tokens, dim / heads)."""
    q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


class Mlp(nn.Sequential):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))


class Vit(nn.Module):
    """Patches, a class token, blocks of one kind, a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.position = nn.Parameter(0.1 * torch.randn(1, 17, DIM))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def complement(index: Tensor, count: int) -> Tensor:
    """The places (batch, count - kept) that are not among (batch, kept): EViT's ``complement_idx``."""
    everything = torch.arange(count, device=index.device).expand(index.shape[0], -1)
    masked = torch.scatter(everything, -1, index, 0)
    return masked.sort(dim=-1, descending=False).values[:, index.shape[1] :]


class EvitBlock(nn.Module):
    """EViT: the tokens that the class token looks at most are kept, the others fused into one."""

    def __init__(self, keep: float, fuse: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out, self.mlp = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), Mlp()
        self.keep, self.fuse = keep, fuse

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm1(x)))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        attention = weights[:, :, 0, 1:].mean(1)
        kept = math.ceil(self.keep * attention.shape[1])
        index = attention.topk(kept, 1, sorted=True).indices
        tokens = x[:, 1:]
        parts = [x[:, :1], tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, DIM))]
        if self.fuse:
            rest = complement(index, tokens.shape[1])
            others = tokens.gather(1, rest.unsqueeze(-1).expand(-1, -1, DIM))
            parts.append((others * attention.gather(1, rest).unsqueeze(-1)).sum(1, keepdim=True))
        x = torch.cat(parts, 1)
        return x + self.mlp(self.norm2(x))


def merge(x: Tensor, source: Tensor, kept: Tensor, goal: Tensor, mode: str = "sum") -> Tensor:
    """ToMe's merge: tokens at ``source`` of the even ones go to ``goal`` of the odd ones."""
    even, odd = x[..., ::2, :], x[..., 1::2, :]
    batch, _, channels = even.shape
    left = even.gather(-2, kept.expand(batch, -1, channels))
    moving = even.gather(-2, source.expand(batch, -1, channels))
    odd = odd.scatter_reduce(-2, goal.expand(batch, -1, channels), moving, reduce=mode)
    return torch.cat((left, odd), 1)


class TomeBlock(nn.Module):
    """ToMe: r pairs of tokens with the most similar keys are merged, weighted by how many each stands for."""

    def __init__(self, r: int, proportional: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out, self.mlp = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), Mlp()
        self.r, self.proportional = r, proportional

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(self.norm1(x)))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.merged(x, k.mean(1))
        return x + self.mlp(self.norm2(x))

    def merged(self, x: Tensor, metric: Tensor) -> Tensor:
        """Bipartite soft matching; the class token is never merged."""
        with torch.no_grad():
            metric = metric / metric.norm(dim=-1, keepdim=True)
            scores = metric[..., ::2, :] @ metric[..., 1::2, :].transpose(-1, -2)
            scores[..., 0, :] = -math.inf
            best, goal = scores.max(dim=-1)
            order = best.argsort(dim=-1, descending=True)[..., None]
            kept, source = order[..., self.r :, :], order[..., : self.r, :]
            goal = goal[..., None].gather(-2, source)
            kept = kept.sort(dim=1)[0]
        if not self.proportional:
            return merge(x, source, kept, goal, "mean")
        size = torch.ones_like(x[..., :1])
        merged = merge(x * size, source, kept, goal)
        return merged / merge(size, source, kept, goal)


class DynamicVitBlock(nn.Module):
    """DynamicViT in training: a gumbel softmax decides, and dropped tokens are masked in the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.qkv, self.out, self.score = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        scores = self.score(x).log_softmax(-1)
        chosen = F.gumbel_softmax(scores, hard=True, dim=-1) if self.training else scores.exp()
        policy = chosen[..., :1]
        q, k, v = split_heads(self.qkv(self.norm(x)))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        seen = policy.reshape(batch, 1, 1, count)
        seen = seen + (1.0 - seen) * torch.eye(count, device=x.device).view(1, 1, count, count)
        scores = (scores - scores.amax(-1, keepdim=True)).exp() * seen
        weights = (scores + 1e-6 / count) / (scores.sum(-1, keepdim=True) + 1e-6)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class PatchMerger(nn.Module):
    """Learned queries softly gather the tokens (TokenLearner, PatchMerger), and a soft mixture of slots gives back."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.slots = nn.Parameter(torch.randn(DIM, slots))
        self.expert = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.norm(x) @ self.slots
        gathered = self.expert(scores.softmax(1).transpose(1, 2) @ x)
        return x + scores.softmax(2) @ gathered


class Sampled(nn.Module):
    """Tokens above a threshold: as many as the image decides."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        keep = self.score(x).mean((0, 2)) > 0
        keep[0] = True
        return x[:, keep]


class EarlyExit(nn.Module):
    """A block that the image may skip."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.mean() > 0) else x + self.mlp(x)


ENTRIES = {
    "EViT, tokens dropped": Entry("user code", lambda: Vit(EvitBlock(0.7, False), EvitBlock(0.5, False))),
    "EViT, the rest fused": Entry("user code", lambda: Vit(EvitBlock(0.7, True), EvitBlock(0.5, True))),
    "ToMe, by size": Entry("user code", lambda: Vit(TomeBlock(4), TomeBlock(3))),
    "ToMe, by mean": Entry("user code", lambda: Vit(TomeBlock(4, False), TomeBlock(3, False))),
    "DynamicViT": Entry("user code", lambda: Vit(DynamicVitBlock(), DynamicVitBlock())),
    "soft mixture of slots": Entry("user code", lambda: Vit(PatchMerger(4), PatchMerger(4))),
    "tokens above a threshold": Entry(
        "user code", lambda: Vit(Sampled()), error=CaptureError, reason="size.* depends on the data"
    ),
    "early exit": Entry("user code", lambda: Vit(EarlyExit()), error=CaptureError, reason="depends on the data"),
}
