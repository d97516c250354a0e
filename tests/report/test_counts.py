"""Operators by class against counts by hand from the architectures; the layout operators and constants are whatever is
left of the graph."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers import ReportOf, slow_except
from torch import Tensor, nn

from tlfx import inspect

HAND: dict[str, dict[str, int]] = {
    "deit_small_patch16_224": {
        "spatial_mix": 12,  # one attention in each of 12 blocks
        "channel_mix": 12 * 4 + 1,  # qkv, proj, fc1, fc2; head
        # norm1, proj_drop, norm2, gelu, drop1, drop2; position embedding, pos_drop, norm, head_drop
        "pointwise": 12 * 6 + 4,
        "residual": 12 * 2,  # attention and MLP
        "aggregation": 1,  # patch embedding; the class token is selected, not pooled
        "weight": 0,  # attention is fused: its weights never show
    },
    "swin_tiny_patch4_window7_224": {
        "spatial_mix": 12,  # weights times values in each of 2 + 2 + 6 + 2 blocks
        "channel_mix": 12 * 4 + 1,  # qkv, proj, fc1, fc2; head
        # norm1, scaling of q, proj_drop, norm2, gelu, drop1, drop2; two drop paths but in the first block, whose rate
        # is 0; norms of the patch embedding, of 3 mergings, at the end; dropout of the head
        "pointwise": 12 * 7 + 11 * 2 + 1 + 3 + 1 + 1,
        "residual": 12 * 2,
        "aggregation": 1 + 3 + 1,  # patch embedding, 3 patch mergings, the mean of the head
        # q·kᵀ, bias, softmax, dropout; a mask (view, add, view) in the 5 shifted blocks: the last stage has one window
        "weight": 12 * 4 + 5 * 3,
    },
    "pvt_v2_b0": {
        "spatial_mix": 4 + 8 + 8,  # 4 overlapping patch embeddings, 8 attentions, 8 depth-wise convolutions
        "channel_mix": 8 * 5 + 1,  # q, kv, proj, fc1, fc2; head
        # norm1, proj_drop, norm2, gelu and two dropouts; norm after 6 spatial reductions; norms of 4 patch embeddings
        # and of 4 stages; dropout of the head
        "pointwise": 8 * 6 + 6 + 4 + 4 + 1,
        "residual": 8 * 2,
        "aggregation": 6 + 1,  # spatial reduction (kernel = stride) in 3 stages of 2 blocks, the mean at the end
        "weight": 0,
    },
    "mixer_s16_224": {
        "spatial_mix": 8 * 2,  # two linear layers along tokens in each of 8 blocks
        "channel_mix": 8 * 2 + 1,  # two along channels; head
        "pointwise": 8 * 8 + 2,  # two norms, and gelu and two dropouts in both MLPs; norm, head_drop
        "residual": 8 * 2,
        "aggregation": 2,  # patch embedding, the mean at the end
        "weight": 0,
    },
    "convnext_tiny": {
        "spatial_mix": 18,  # a depth-wise 7×7 convolution in each of 3 + 3 + 9 + 3 blocks
        "channel_mix": 18 * 2 + 1,  # fc1, fc2; head
        "pointwise": 18 * 5 + 1 + 3 + 2,  # norm, gelu, two dropouts, layer scale; norms of stem, downsampling and head
        "residual": 18,
        "aggregation": 1 + 3 + 1,  # stem and downsampling have kernel = stride; the pool of the head
        "weight": 0,
    },
    "resnet50": {
        "spatial_mix": 1 + 16,  # 7×7 stem, one 3×3 in each of 3 + 4 + 6 + 3 blocks
        "channel_mix": 32 + 4 + 1,  # two 1×1 in each block, 4 projections of the skip, classifier
        "pointwise": 53 + 49,  # a batch norm after each convolution, a ReLU after the stem and three in each block
        "residual": 16,
        "aggregation": 2,  # max pool, which drops every other position, and the pool at the end
        "weight": 0,
    },
    "poolformerv2_s12": {
        "spatial_mix": 12 + 1 + 3,  # 12 pools that keep the grid; stem and 3 downsamplings overlap
        "channel_mix": 12 * 2 + 1,  # 1×1 convolutions fc1, fc2; head
        # two norms, relu · pow · mul · add of StarReLU, two dropouts; two scalings of the skip in the 8 blocks of the
        # last two stages; norms of stem, 3 downsamplings and head; dropout of the head
        "pointwise": 12 * 8 + 8 * 2 + 1 + 3 + 1 + 1,
        "residual": 12 * 3,  # pool(x) − x sums two values with content too
        "aggregation": 1,
        "weight": 0,
    },
    "maxvit_tiny_tf_224": {
        # two convolutions of the stem; a depth-wise 3×3, window and grid attention in each of 2 + 2 + 5 + 2 blocks
        "spatial_mix": 2 + 11 * 3,
        # two 1×1 and two of squeeze-and-excitation; 1×1 on the skip of 3 blocks that widen; qkv, proj, fc1, fc2 in 22
        # attention blocks; two layers of the head
        "channel_mix": 11 * 4 + 3 + 22 * 4 + 2,
        # norm and activation of the stem; three norms, two activations, and activation, gate and product of
        # squeeze-and-excitation; norm1, proj_drop, norm2, gelu, drop1, drop2; norm, tanh and dropout of the head
        "pointwise": 2 + 11 * 8 + 22 * 6 + 3,
        "residual": 11 + 22 * 2,
        "aggregation": 11 + 4 + 1,  # means of squeeze-and-excitation, pools on the skips, pool of the head
        "weight": 0,
    },
    "xcit_nano_12_p8_224": {
        # 3 convolutions of the stem, two depth-wise ones in each of 12 blocks, attention in 2 class-attention blocks
        "spatial_mix": 3 + 12 * 2 + 2,
        # qkv, weights times values (over channels), proj, fc1, fc2; q, k, v, proj, fc1, fc2 for the class token; head
        "channel_mix": 12 * 5 + 2 * 6 + 1,
        # norms and gelu of the stem, position encoding, pos_drop; norm1, division and clamp for q and for k, proj_drop,
        # gelu and norm between the convolutions, norm3, norm2, gelu, drop1, drop2, three layer scales; norm1,
        # proj_drop, norm2, gelu, drop1, drop2, two layer scales for the class token; norm, head_drop
        "pointwise": (3 + 2 + 2) + 12 * 16 + 2 * 8 + 2,
        "residual": 12 * 3 + 2 * 2,
        "aggregation": 12 * 2,  # the norms of q and k sum over all tokens
        "weight": 12 * 4,  # channels × channels: q·kᵀ, temperature, softmax, dropout
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HAND)
def test_operators_by_class(name: str, report_of: ReportOf) -> None:
    report = report_of(name)
    counts = report.counts
    assert {k: counts[k] for k in HAND[name]} == HAND[name]
    assert sum(counts.values()) == len(report.nodes)


BLOCKS = {
    "deit_small_patch16_224": {"spatial_mix": 1, "channel_mix": 4, "pointwise": 6, "residual": 2},
    "xcit_nano_12_p8_224": {
        "spatial_mix": 2,
        "channel_mix": 5,
        "pointwise": 16,
        "residual": 3,
        "aggregation": 2,
        "weight": 4,
    },
}


@pytest.mark.parametrize("name", slow_except(["deit_small_patch16_224"], BLOCKS))
def test_operators_of_fewer_blocks(name: str, report_of: ReportOf) -> None:
    """Two blocks: the counts of all twelve less ten times those of a block."""
    counts, whole, block = report_of(name, depth=2).counts, HAND[name], Counter(BLOCKS[name])
    assert {k: counts[k] for k in whole} == {k: whole[k] - 10 * block[k] for k in whole}


class TokenMlp(nn.Module):
    """An MLP along the tokens (batch, tokens, channels) for each head: groups of a 1×1 convolution."""

    def __init__(self, tokens: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.fc1 = nn.Conv1d(heads * tokens, heads * hidden, 1, groups=heads)
        self.fc2 = nn.Conv1d(heads * hidden, heads * tokens, 1, groups=heads)

    def forward(self, x: Tensor) -> Tensor:
        by_head = x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, channels of a head)
        mixed = self.fc2(nn.functional.gelu(self.fc1(by_head.flatten(1, 2))))
        return mixed.unflatten(1, (self.heads, -1)).transpose(1, 2).flatten(2)


class TokenMlps(nn.Module):
    """Patches of 4×4 pixels, blocks of a token MLP and a channel MLP, and a head."""

    def __init__(self, heads: int, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.Linear(width, 5)
        self.branches = nn.ModuleList()
        for _ in range(blocks):
            channels = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
            self.branches += [nn.Sequential(nn.LayerNorm(width), m) for m in (TokenMlp(16, heads, 24), channels)]

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for branch in self.branches:
            x = x + branch(x)
        return self.head(self.norm(x).mean(1))


@pytest.mark.parametrize("heads", [1, 2])
def test_token_mlps_of_several_heads(heads: int) -> None:
    """A 1×1 convolution whose channels are tokens mixes them, also if heads are its groups."""
    by_hand = {
        "spatial_mix": 3 * 2,  # fc1 and fc2 of the token MLP in each of 3 blocks
        "channel_mix": 3 * 2 + 1,  # those of the channel MLP; head
        "pointwise": 3 * 4 + 1,  # norm and gelu of both; norm
        "residual": 3 * 2,
        "aggregation": 1 + 1,  # patch embedding, mean
        "weight": 0,
    }
    counts = inspect(TokenMlps(heads, blocks=3), input_size=(16, 16)).counts
    assert {k: counts[k] for k in by_hand} == by_hand


class Permute(nn.Module):
    """The mixing of a Vision Permutator, (batch, height, width, channels): rows and channels, columns and channels, and
    channels alone, in ``height`` = ``width`` segments of channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows, self.columns, self.channels, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[1]
        parts = x.unflatten(3, (height, -1))  # (batch, height, width, segments, channels)
        size = parts.shape
        rows = self.rows(parts.permute(0, 3, 2, 1, 4).reshape(x.shape)).reshape(size).permute(0, 3, 2, 1, 4)
        columns = self.columns(parts.transpose(2, 3).reshape(x.shape)).reshape(size).transpose(2, 3)
        mixed = rows.reshape(x.shape) + columns.reshape(x.shape) + self.channels(x)
        projected: Tensor = self.proj(mixed)
        return projected


class Permutator(nn.Module):
    """Patches of 4×4 pixels, blocks of the mixing above and of a channel MLP, and a head."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.Linear(width, 5)
        self.branches = nn.ModuleList()
        for _ in range(blocks):
            channels = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
            self.branches += [nn.Sequential(nn.LayerNorm(width), m) for m in (Permute(width), channels)]

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).permute(0, 2, 3, 1)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(self.norm(x).mean((1, 2)))


def test_a_permutator() -> None:
    """A linear layer over the rows of a column and their channels that keeps both mixes the rows."""
    by_hand = {
        "spatial_mix": 2 * 2,  # rows and columns in each of 2 blocks
        "channel_mix": 2 * 4 + 1,  # channels and proj, fc1 and fc2; head
        "pointwise": 2 * 3 + 1,  # two norms, gelu; norm
        "residual": 2 * 4,  # two sums of the three branches, two skip connections
        "aggregation": 1 + 1,  # patch embedding, mean
        "weight": 0,
    }
    counts = inspect(Permutator(blocks=2), input_size=(16, 16)).counts
    assert {k: counts[k] for k in by_hand} == by_hand


GIGA = [("deit_small_patch16_224", 9.2), ("resnet50", 8.2), ("convnext_tiny", 8.9), ("pvt_v2_b0", 1.14)]


@pytest.mark.parametrize(
    ("name", "giga"),
    slow_except([GIGA[0]], GIGA),
)
def test_flops_are_twice_the_multiplications_that_papers_count(name: str, giga: float, report_of: ReportOf) -> None:
    assert report_of(name).flops / 1e9 == pytest.approx(giga, rel=0.03)
