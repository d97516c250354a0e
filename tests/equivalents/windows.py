"""Spellings of sliding windows: those that overlap are convolutions, those that tile are aggregation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, Group, tokens, windows_of_3

__all__ = ["GROUPS"]

PLACES = [(i, j) for i in range(3) for j in range(3)]


def padded(z: Tensor) -> Tensor:
    return F.pad(z, (1, 1, 1, 1))


def shifted(z: Tensor) -> list[Tensor]:
    return [padded(z)[:, :, i : i + SIDE, j : j + SIDE] for i, j in PLACES]


def cut(z: Tensor) -> Tensor:
    """Windows (batch, channels, height, width, 3, 3)."""
    return padded(z).unfold(2, 3, 1).unfold(3, 3, 1)


def strided(z: Tensor, size: tuple[int, ...], *steps: int) -> Tensor:
    """Windows (batch, channels, *size) as a view of an image's memory, of which one channel after another is laid out
    in rows."""
    z = z.contiguous()
    return z.as_strided((*z.shape[:2], *size), (*z.stride()[:2], *steps))


def one_kernel() -> nn.Conv2d:
    """A depthwise convolution with one kernel for all channels."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
    conv.weight.data = conv.weight.data[:1].expand(CHANNELS, -1, -1, -1).clone()
    return conv


def plus(s: Any, z: Tensor) -> Tensor:
    one = padded(z)
    out = one[:, :, :SIDE, :SIDE] * s.conv.weight[0, 0, 0, 0]
    for i, j in PLACES[1:]:
        out = out + one[:, :, i : i + SIDE, j : j + SIDE] * s.conv.weight[0, 0, i, j]
    return tokens(out)


def plus_in_place(s: Any, z: Tensor) -> Tensor:
    one, out = padded(z), torch.zeros_like(z)
    for i, j in PLACES:
        out += one[:, :, i : i + SIDE, j : j + SIDE] * s.conv.weight[:, 0, i, j].view(1, -1, 1, 1)
    return tokens(out)


DEPTHWISE = Group("depthwise convolution", {"conv": one_kernel()}).add(
    conv=lambda s, z: tokens(s.conv(z)),
    unfold=lambda s, z: (
        (F.unfold(z, 3, padding=1).unflatten(1, (CHANNELS, 9)) * s.conv.weight.flatten(1)[None, :, :, None]).sum(2).mT
    ),
    unfold_einsum=lambda s, z: torch.einsum(
        "bckn,ck->bnc", F.unfold(z, 3, padding=1).unflatten(1, (CHANNELS, 9)), s.conv.weight.flatten(1)
    ),
    tensor_unfold=lambda s, z: tokens((cut(z) * s.conv.weight[:, 0][None, :, None, None]).sum((4, 5))),
    tensor_unfold_einsum=lambda s, z: tokens(torch.einsum("bchwij,cij->bchw", cut(z), s.conv.weight[:, 0])),
    stack=lambda s, z: tokens((torch.stack(shifted(z), 2) * s.conv.weight.flatten(1)[None, :, :, None, None]).sum(2)),
    plus=plus,
    plus_in_place=plus_in_place,
    one_channel_at_a_time=lambda s, z: tokens(
        torch.cat([F.conv2d(z[:, i : i + 1], s.conv.weight[i : i + 1], padding=1) for i in range(CHANNELS)], 1)
    ),
    channels_in_the_batch=lambda s, z: tokens(
        F.conv2d(z.reshape(-1, 1, SIDE, SIDE), s.conv.weight[:1], padding=1).view_as(z)
    ),
)

CONVOLUTION = Group("convolution", {"conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)}).add(
    conv=lambda s, z: tokens(s.conv(z)),
    padded_before=lambda s, z: tokens(F.conv2d(padded(z), s.conv.weight)),
    unfold_matmul=lambda s, z: (s.conv.weight.flatten(1) @ F.unfold(z, 3, padding=1)).mT,
    unfold_linear=lambda s, z: F.linear(F.unfold(z, 3, padding=1).mT, s.conv.weight.flatten(1)),
    unfold_of_padded=lambda s, z: F.linear(F.unfold(padded(z), 3).mT, s.conv.weight.flatten(1)),
    tensor_unfold_einsum=lambda s, z: tokens(torch.einsum("bchwij,ocij->bohw", cut(z), s.conv.weight)),
    tensor_unfold_linear=lambda s, z: F.linear(
        cut(z).permute(0, 2, 3, 1, 4, 5).flatten(3), s.conv.weight.flatten(1)
    ).flatten(1, 2),
    as_strided=lambda s, z: tokens(
        torch.einsum(
            "bchwij,ocij->bohw",
            strided(padded(z), (SIDE, SIDE, 3, 3), SIDE + 2, 1, SIDE + 2, 1),
            s.conv.weight,
        )
    ),
    stack_einsum=lambda s, z: tokens(
        torch.einsum("bckhw,ock->bohw", torch.stack(shifted(z), 2), s.conv.weight.flatten(2))
    ),
    cat_and_1x1=lambda s, z: tokens(
        F.conv2d(torch.cat(shifted(z), 1), s.conv.weight.flatten(2).mT.flatten(1)[..., None, None])
    ),
)

PATCHES = Group("patches", {"conv": nn.Conv2d(CHANNELS, CHANNELS, 2, 2, bias=False)}).add(
    conv=lambda s, z: tokens(s.conv(z)),
    unfold_matmul=lambda s, z: (s.conv.weight.flatten(1) @ F.unfold(z, 2, stride=2)).mT,
    reshape_linear=lambda s, z: F.linear(
        z.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3), s.conv.weight.flatten(1)
    ).flatten(1, 2),
    einsum=lambda s, z: tokens(
        torch.einsum("bcxiyj,ocij->boxy", z.unflatten(2, (2, 2)).unflatten(4, (2, 2)), s.conv.weight)
    ),
    gather_four=lambda s, z: F.linear(
        tokens(torch.cat([z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)),
        s.conv.weight.permute(0, 2, 3, 1).flatten(1),
    ),
    pixel_unshuffle=lambda s, z: tokens(F.conv2d(F.pixel_unshuffle(z, 2), s.conv.weight.flatten(1)[..., None, None])),
    tensor_unfold=lambda s, z: tokens(
        torch.einsum("bchwij,ocij->bohw", z.unfold(2, 2, 2).unfold(3, 2, 2), s.conv.weight)
    ),
    as_strided=lambda s, z: tokens(
        torch.einsum("bchwij,ocij->bohw", strided(z, (2, 2, 2, 2), 2 * SIDE, 2, SIDE, 1), s.conv.weight)
    ),
    average=lambda s, z: tokens(F.avg_pool2d(z, 2)),
    maximum=lambda s, z: tokens(F.max_pool2d(z, 2)),
    mean=lambda s, z: tokens(z.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))),
    mean_of_four=lambda s, z: tokens(torch.stack([z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)),
    adaptive=lambda s, z: tokens(F.adaptive_avg_pool2d(z, 2)),
    area=lambda s, z: tokens(F.interpolate(z, size=(2, 2), mode="area")),
)


def odd(z: Tensor) -> Tensor:
    return z[:, :, :3, :3]


def four(z: Tensor) -> Tensor:
    return tokens(torch.cat([z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1))


ODD = Group("patches at an odd edge", {"linear": nn.Linear(4 * CHANNELS, CHANNELS, bias=False)}).add(
    ceil_mode=lambda s, z: tokens(F.avg_pool2d(odd(z), 2, ceil_mode=True)),
    maximum=lambda s, z: tokens(F.max_pool2d(odd(z), 2, ceil_mode=True)),
    pad=lambda s, z: s.linear(four(F.pad(odd(z), (0, 1, 0, 1)))),
    cat=lambda s, z: s.linear(
        four(
            torch.cat(
                (torch.cat((odd(z), z.new_zeros(len(z), CHANNELS, 3, 1)), 3), torch.zeros(len(z), CHANNELS, 1, 4)), 2
            )
        )
    ),
    written=lambda s, z: s.linear(
        four(
            torch.zeros_like(z).index_put(
                (
                    torch.arange(len(z))[:, None, None, None],
                    torch.arange(CHANNELS)[:, None, None],
                    torch.arange(3)[:, None],
                    torch.arange(3),
                ),
                odd(z),
            )
        )
    ),
    masked=lambda s, z: s.linear(four(z * F.pad(torch.ones(3, 3), (0, 1, 0, 1)))),
    unfold=lambda s, z: s.linear(F.unfold(F.pad(odd(z), (0, 1, 0, 1)), 2, stride=2).mT),
)


def places(s: Any, g: Tensor) -> Tensor:
    """Sampling places that depend on a group of channels (batch, channels / 2, height, width)."""
    grid = F.affine_grid(torch.eye(2, 3).expand(len(g), 2, 3), list(g.shape), align_corners=False)
    return grid + 0.3 * s.offset(g).tanh().movedim(1, -1)


def sampled(s: Any, g: Tensor) -> Tensor:
    return F.grid_sample(g, places(s, g), align_corners=False)


def in_the_batch(s: Any, z: Tensor) -> Tensor:
    return sampled(s, z.reshape(2 * len(z), CHANNELS // 2, *z.shape[2:])).view_as(z)


def in_the_batch_outside(s: Any, z: Tensor) -> Tensor:
    groups = sampled(s, torch.cat(z.chunk(2, 1)))
    return torch.cat(groups.chunk(2), 1)


DEFORMABLE = Group("places that groups of channels choose", {"offset": nn.Conv2d(CHANNELS // 2, 2, 1)}).add(
    one_after_the_other=lambda s, z: tokens(torch.cat([sampled(s, g) for g in z.chunk(2, 1)], 1)),
    in_the_batch=lambda s, z: tokens(in_the_batch(s, z)),
    in_the_batch_outside=lambda s, z: tokens(in_the_batch_outside(s, z)),
)


def kernels(s: Any, z: Tensor) -> Tensor:
    """A depthwise kernel for each sample, (batch, channels, 9), decided by the means of its channels."""
    return s.kernel(z.mean((2, 3))).view(len(z), CHANNELS, 9)


def in_groups(z: Tensor) -> Tensor:
    """(1, batch · channels, height, width)."""
    return z.reshape(1, -1, SIDE, SIDE)


def by_kernels(s: Any, z: Tensor) -> Tensor:
    count = len(z) * CHANNELS
    return F.conv2d(in_groups(z), kernels(s, z).view(count, 1, 3, 3), padding=1, groups=count).view_as(z)


def by_kernels_transposed(s: Any, z: Tensor) -> Tensor:
    count = len(z) * CHANNELS
    flipped = kernels(s, z).view(count, 1, 3, 3).flip(2, 3)
    return F.conv_transpose2d(in_groups(z), flipped, padding=1, groups=count).view_as(z)


def by_shifts(s: Any, z: Tensor) -> Tensor:
    weight = kernels(s, z)[..., None, None]
    return torch.stack([one * weight[:, :, i] for i, one in enumerate(shifted(z))]).sum(0)


DYNAMIC = Group("a kernel for each sample", {"kernel": nn.Linear(CHANNELS, 9 * CHANNELS)}).add(
    unfold=lambda s, z: (F.unfold(z, 3, padding=1).unflatten(1, (CHANNELS, 9)) * kernels(s, z)[..., None]).sum(2).mT,
    groups=lambda s, z: tokens(by_kernels(s, z)),
    transposed=lambda s, z: tokens(by_kernels_transposed(s, z)),
    shifts=lambda s, z: tokens(by_shifts(s, z)),
)


def experts(s: Any, z: Tensor) -> Tensor:
    """A matrix (batch, channels, channels) of each sample, a mixture of two."""
    return (s.route(z.mean((2, 3))).sigmoid() @ s.experts).view(-1, CHANNELS, CHANNELS)


CONDITIONAL = Group(
    "a matrix of channels for each sample",
    {"route": nn.Linear(CHANNELS, 2), "experts": nn.Parameter(torch.randn(2, CHANNELS * CHANNELS))},
).add(
    product=lambda s, z: tokens(z) @ experts(s, z).mT,
    einsum=lambda s, z: torch.einsum("bnc,bdc->bnd", tokens(z), experts(s, z)),
    groups=lambda s, z: tokens(
        F.conv2d(in_groups(z), experts(s, z).view(-1, CHANNELS, 1, 1), groups=len(z)).view_as(z)
    ),
)


def kernel_of_tokens(s: Any, z: Tensor) -> Tensor:
    """A kernel for each token, (batch, 9, tokens)."""
    return s.kernel(z).flatten(2)


INVOLUTION = Group("a kernel for each token", {"kernel": nn.Conv2d(CHANNELS, 9, 1)}).add(
    product=lambda s, z: (kernel_of_tokens(s, z)[:, None] * windows_of_3(z)).sum(2).mT,
    einsum=lambda s, z: torch.einsum("bkn,bckn->bnc", kernel_of_tokens(s, z), windows_of_3(z)),
    matmul=lambda s, z: (windows_of_3(z).permute(0, 3, 1, 2) @ kernel_of_tokens(s, z).mT[..., None])[..., 0],
)


def local_attention(s: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (batch, tokens, 1, channels), keys and values (batch, tokens, 9, channels) of the neighbours."""
    keys = s.k(tokens(z)).mT.unflatten(2, (SIDE, SIDE))
    return s.q(tokens(z))[:, :, None], windows_of_3(keys).permute(0, 3, 2, 1), windows_of_3(z).permute(0, 3, 2, 1)


def local_weights(s: Any, z: Tensor) -> Tensor:
    query, key, _ = local_attention(s, z)
    return (query @ key.mT).softmax(-1)


LOCAL = Group("attention to neighbours").add(
    matmul=lambda s, z: (local_weights(s, z) @ local_attention(s, z)[2])[:, :, 0],
    fused=lambda s, z: F.scaled_dot_product_attention(*local_attention(s, z), scale=1.0)[:, :, 0],
    product=lambda s, z: (local_weights(s, z).mT * local_attention(s, z)[2]).sum(2),
    einsum=lambda s, z: torch.einsum("bnk,bnkc->bnc", local_weights(s, z)[:, :, 0], local_attention(s, z)[2]),
)

GROUPS = [DEPTHWISE, CONVOLUTION, PATCHES, ODD, DEFORMABLE, DYNAMIC, CONDITIONAL, INVOLUTION, LOCAL]
