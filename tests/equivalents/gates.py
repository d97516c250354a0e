"""Spellings of gates, statistics and norms, which leave labels as they are, and of summands that do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, tokens

__all__ = ["GROUPS"]


def gate(s: Any, z: Tensor) -> Tensor:
    """A gate of channels (batch, channels, 1, 1), from the mean of the image."""
    return s.linear(z.mean((2, 3))).sigmoid()[..., None, None]


GATE = Group("a gate of channels", {"linear": nn.Linear(CHANNELS, CHANNELS)}).add(
    broadcast=lambda s, z: tokens(z * gate(s, z)),
    broadcast_the_other_way=lambda s, z: tokens(gate(s, z) * z),
    expand_as=lambda s, z: tokens(z * gate(s, z).expand_as(z)),
    expanded_and_copied=lambda s, z: tokens(z.mul(gate(s, z).expand_as(z).contiguous())),
    broadcast_to=lambda s, z: tokens(z * torch.broadcast_to(gate(s, z), z.shape)),
    repeat=lambda s, z: tokens(z * gate(s, z).repeat(1, 1, SIDE, SIDE)),
    repeat_interleave=lambda s, z: tokens(z * gate(s, z).repeat_interleave(SIDE, 2)),
    interpolate=lambda s, z: tokens(z * F.interpolate(gate(s, z), (SIDE, SIDE))),
    bilinear=lambda s, z: tokens(z * F.interpolate(gate(s, z), (SIDE, SIDE), mode="bilinear")),
    times_ones=lambda s, z: tokens(z * (gate(s, z) * torch.ones_like(z))),
    einsum=lambda s, z: tokens(torch.einsum("bchw,bc->bchw", z, gate(s, z)[..., 0, 0])),
    einsum_of_tokens=lambda s, z: torch.einsum("bnc,bc->bnc", tokens(z), gate(s, z)[..., 0, 0]),
    of_tokens=lambda s, z: tokens(z) * gate(s, z).flatten(1)[:, None],
    flattened=lambda s, z: tokens((z.flatten(2) * gate(s, z).flatten(2)).view_as(z)),
    quotient=lambda s, z: tokens(z / (1 / gate(s, z))),
    in_place=lambda s, z: tokens(z.clone().mul_(gate(s, z))),
    channel_by_channel=lambda s, z: tokens(torch.stack([z[:, i] * gate(s, z)[:, i] for i in range(CHANNELS)], 1)),
)


def spatial(s: Any, z: Tensor) -> Tensor:
    """A gate of tokens (batch, 1, height, width), from their neighbours."""
    return s.conv(z).sigmoid()


SPATIAL = Group("a gate of tokens", {"conv": nn.Conv2d(CHANNELS, 1, 3, padding=1)}).add(
    broadcast=lambda s, z: tokens(z * spatial(s, z)),
    expand_as=lambda s, z: tokens(z * spatial(s, z).expand_as(z)),
    expanded_before=lambda s, z: tokens(z * s.conv(z).expand_as(z).sigmoid()),
    repeat=lambda s, z: tokens(z * spatial(s, z).repeat(1, CHANNELS, 1, 1)),
    einsum=lambda s, z: tokens(torch.einsum("bchw,bhw->bchw", z, spatial(s, z)[:, 0])),
    of_tokens=lambda s, z: tokens(z) * spatial(s, z).flatten(2).mT,
    of_tokens_expanded=lambda s, z: tokens(z) * spatial(s, z).flatten(2).mT.expand(-1, -1, CHANNELS).contiguous(),
    quotient=lambda s, z: tokens(z / (1 / spatial(s, z))),
)

CONSTANTS = Group(
    "a gate of tokens times channels",
    {
        "conv": nn.Conv2d(CHANNELS, 1, 3, padding=1),
        "scale": nn.Parameter(torch.tensor([0.5, 2.0, -1.0, 3.0]).view(-1, 1, 1)),
    },
).add(
    one_after_another=lambda s, z: tokens(z * s.scale * s.conv(z)),
    product_first=lambda s, z: tokens(z * (s.conv(z) * s.scale)),
    product_of_expanded=lambda s, z: tokens(z * (s.conv(z).expand_as(z) * s.scale)),
    the_other_way=lambda s, z: tokens((s.scale * s.conv(z)) * z),
    einsum=lambda s, z: tokens(torch.einsum("bchw,bhw,c->bchw", z, s.conv(z)[:, 0], s.scale[:, 0, 0])),
)


def between(s: Any, z: Tensor) -> Any:
    """An image, another, and the share of the other."""
    return z, s.conv(z), s.share(z).sigmoid()


INTERPOLATED = Group(
    "between two images by a gate",
    {"conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), "share": nn.Conv2d(CHANNELS, 1, 3, padding=1)},
).add(
    products=lambda s, z: (lambda a, b, t: tokens(b * t + a * (1 - t)))(*between(s, z)),
    products_the_other_way=lambda s, z: (lambda a, b, t: tokens((1 - t) * a + t * b))(*between(s, z)),
    lerp=lambda s, z: (lambda a, b, t: tokens(torch.lerp(a, b, t)))(*between(s, z)),
    lerp_the_other_way=lambda s, z: (lambda a, b, t: tokens(torch.lerp(b, a, 1 - t)))(*between(s, z)),
    lerp_in_place=lambda s, z: (lambda a, b, t: tokens(a.clone().lerp_(b, t)))(*between(s, z)),
)

ONE_CHANNEL = Group("a summand of one channel", {"conv": nn.Conv2d(CHANNELS, 1, 3, padding=1)}).add(
    expand_as=lambda s, z: tokens(z + s.conv(z).expand_as(z)),
    broadcast=lambda s, z: tokens(z + s.conv(z)),
    broadcast_the_other_way=lambda s, z: tokens(s.conv(z) + z),
    difference=lambda s, z: tokens(z - s.conv(z)),
    repeat=lambda s, z: tokens(z + s.conv(z).repeat(1, CHANNELS, 1, 1)),
    of_tokens=lambda s, z: tokens(z) + s.conv(z).flatten(2).mT,
    in_place=lambda s, z: tokens(z.clone().add_(s.conv(z))),
)

STATISTICS = Group("the sum of two statistics").add(
    expanded=lambda s, z: tokens(z.mean(3, True).expand_as(z) + z.mean((2, 3), True).expand_as(z)),
    one_expanded=lambda s, z: tokens(z.mean(3, True).expand_as(z) + z.mean((2, 3), True)),
    expanded_after=lambda s, z: tokens((z.mean(3, True) + z.mean((2, 3), True)).expand_as(z)),
    repeated_after=lambda s, z: tokens((z.mean((2, 3), True) + z.mean(3, True)).repeat(1, 1, 1, SIDE)),
    sums=lambda s, z: tokens((z.sum(3, True) / SIDE + z.sum((2, 3), True) / TOKENS).expand_as(z)),
)


def instance_norm(s: Any, z: Tensor) -> Tensor:
    centred = z - z.mean((2, 3), keepdim=True)
    return tokens(centred / ((centred**2).mean((2, 3), keepdim=True) + 1e-5).sqrt())


def instance_norm_by_var(s: Any, z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(z, (2, 3), keepdim=True)
    return tokens((z - mean) * torch.rsqrt(variance + 1e-5))


def instance_norm_of_rows(s: Any, z: Tensor) -> Tensor:
    rows = z.flatten(2)
    return ((rows - rows.mean(-1, keepdim=True)) / rows.std(-1, keepdim=True)).mT


def instance_norm_expanded(s: Any, z: Tensor) -> Tensor:
    mean = z.mean(3, keepdim=True).mean(2, keepdim=True)
    return tokens((z - mean.expand_as(z)) / z.std((2, 3), keepdim=True).expand_as(z))


def instance_norm_of_tokens(s: Any, z: Tensor) -> Tensor:
    mean = tokens(z).mean(1)
    return torch.stack([token - mean for token in tokens(z).unbind(1)], 1) / tokens(z).std(1, keepdim=True)


def group_norm(s: Any, z: Tensor) -> Tensor:
    groups = z.unflatten(1, (2, -1))
    mean, variance = (f((2, 3, 4), keepdim=True) for f in (groups.mean, groups.var))
    return tokens(((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2))


def layer_norm(s: Any, z: Tensor) -> Tensor:
    centred = z - z.mean((1, 2, 3), keepdim=True)
    return tokens(centred / centred.pow(2).mean((1, 2, 3), keepdim=True).sqrt())


def layer_norm_of_channels(s: Any, z: Tensor) -> Tensor:
    centred = z - z.mean(1, keepdim=True)
    return tokens(centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt())


NORMS = Group("norms").add(
    instance=lambda s, z: tokens(F.instance_norm(z)),
    group=lambda s, z: tokens(F.group_norm(z, 2)),
    layer=lambda s, z: F.layer_norm(tokens(z), (CHANNELS,)),
    layer_of_images=lambda s, z: tokens(F.layer_norm(z, z.shape[1:])),
    rms=lambda s, z: F.rms_norm(tokens(z), (CHANNELS,)),
    length=lambda s, z: F.normalize(tokens(z), dim=-1),
    length_over_tokens=lambda s, z: F.normalize(tokens(z), dim=1),
    instance_written_out=instance_norm,
    instance_by_var_mean=instance_norm_by_var,
    instance_of_rows=instance_norm_of_rows,
    instance_expanded=instance_norm_expanded,
    instance_of_tokens=instance_norm_of_tokens,
    group_written_out=group_norm,
    layer_written_out=layer_norm,
    layer_of_channels_written_out=layer_norm_of_channels,
    centred_by_a_pool=lambda s, z: tokens(z - F.adaptive_avg_pool2d(z, 1)),
    centred_the_other_way=lambda s, z: tokens(z.mean((2, 3), True) - z),
    centred_by_a_sum=lambda s, z: tokens(z + -z.mean((2, 3), True)),
    less_the_largest=lambda s, z: tokens(z - z.amax((2, 3), True)),
)


def added(parts: Iterable[Tensor]) -> Tensor:
    """A sum of parts, one after another."""
    return functools.reduce(torch.add, parts)


def added_in_place(parts: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part / TOKENS
    return total * TOKENS


def by_token(total: Callable[[Any], Any]) -> Any:
    """Instance norm, its statistics by a sum over a list of tokens (batch, channels)."""

    def body(s: Any, z: Tensor) -> Tensor:
        t = tokens(z)
        centred = t - total(t.unbind(1))[:, None] / TOKENS
        return centred / (total(centred.square().unbind(1))[:, None] / TOKENS + 1e-5).sqrt()

    return body


def group_norm_by_part(s: Any, z: Tensor) -> Tensor:
    groups = z.unflatten(1, (2, -1))
    mean = added(groups[:, :, i, j].sum(-1) for i in range(CHANNELS // 2) for j in range(SIDE)) / (groups[0, 0].numel())
    return tokens((groups - mean[..., None, None, None]).flatten(1, 2))


MEANS = Group("norms by sums of tokens").add(
    instance=lambda s, z: tokens(F.instance_norm(z)),
    token_by_token=by_token(added),
    built_in_sum=by_token(sum),
    in_place=by_token(added_in_place),
    stacked=by_token(lambda parts: torch.stack([*parts]).sum(0)),
    row_by_row=lambda s, z: tokens(z - added(row.sum(-1) for row in z.unbind(2))[..., None, None] / TOKENS),
    half_by_half=lambda s, z: tokens(z - added(h.mean((2, 3), keepdim=True) for h in z.chunk(2, 2)) / 2),
    every_token=lambda s, z: torch.stack([t - added(tokens(z).unbind(1)) / TOKENS for t in tokens(z).unbind(1)], 1),
    variance_by_squares=lambda s, z: (
        (tokens(z) - tokens(z).mean(1, True))
        / (added(tokens(z).square().unbind(1)) / TOKENS - tokens(z).mean(1) ** 2 + 1e-5).sqrt()[:, None]
    ),
    ones=lambda s, z: tokens(z) - torch.ones(1, TOKENS) @ tokens(z) / TOKENS,
    matrix=lambda s, z: tokens(z) - torch.full((TOKENS, TOKENS), 1 / TOKENS) @ tokens(z),
    einsum=lambda s, z: tokens(z) - torch.einsum("bnc,n->bc", tokens(z), torch.full((TOKENS,), 1 / TOKENS))[:, None],
    group_by_part=group_norm_by_part,
)


def mean(z: Tensor) -> Tensor:
    """(batch, tokens, channels) → (batch, 1, channels)."""
    return z.mean(1, keepdim=True)


def own_norm(z: Tensor) -> Tensor:
    centred = z - z.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


OWN_FACTORS = Group("the mean of a function of one value").add(
    gelu=lambda s, z: mean(F.gelu(tokens(z))),
    gelu_written_out=lambda s, z: mean(tokens(z) * 0.5 * (1 + torch.erf(tokens(z) / 2**0.5))),
    silu=lambda s, z: mean(tokens(z) * tokens(z).sigmoid()),
    silu_as_a_quotient=lambda s, z: mean(tokens(z / (1 + z.neg().exp()))),
    hard_silu=lambda s, z: mean(tokens(z * F.relu6(z + 3) / 6)),
    square=lambda s, z: mean(tokens(z * z)),
    layer_norm=lambda s, z: mean(F.layer_norm(tokens(z), (CHANNELS,))),
    layer_norm_written_out=lambda s, z: mean(own_norm(tokens(z))),
    rms_norm=lambda s, z: mean(tokens(z * z.square().mean(1, keepdim=True).rsqrt())),
    length=lambda s, z: mean(F.normalize(tokens(z), dim=-1)),
    length_written_out=lambda s, z: mean(tokens(z / z.norm(dim=1, keepdim=True).expand_as(z))),
)
GLU = Group("the mean of a gated linear unit", {"linear": nn.Linear(CHANNELS, 2 * CHANNELS)}).add(
    chunks=lambda s, z: (lambda a, b: mean(a * b.sigmoid()))(*s.linear(tokens(z)).chunk(2, -1)),
    glu=lambda s, z: mean(F.glu(s.linear(tokens(z)))),
    glu_along_channels=lambda s, z: mean(F.glu(s.linear(tokens(z)).mT, 1).mT),
)

GROUPS = [GATE, SPATIAL, CONSTANTS, INTERPOLATED, ONE_CHANNEL, STATISTICS, NORMS, MEANS, OWN_FACTORS, GLU]
