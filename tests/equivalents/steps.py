"""Steps of random programs: each maps tokens (batch, TOKENS, CHANNELS) to tokens, in several spellings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, TOKENS, by_channel, in_heads, joined, tokens

__all__ = ["PARTS", "STEPS", "Step"]

Spelling = Callable[[Any, Tensor], Tensor]
"""Parts of the program and tokens to tokens."""


@dataclass(frozen=True)
class Step:
    """The spellings of one step."""

    name: str
    spellings: tuple[Spelling, ...]
    labels_all: bool = True
    """Whether the label of a token comes from all tokens that it depends on: not from those of gates and statistics."""

    def __repr__(self) -> str:
        return self.name


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))


def recurrent() -> nn.GRU:
    torch.manual_seed(7)
    return nn.GRU(CHANNELS, CHANNELS, batch_first=True)


PARTS: dict[str, Any] = {
    "mixer": weights(TOKENS, TOKENS),
    "kernels": weights(CHANNELS, 1, 3, 3),
    "dense": weights(CHANNELS, CHANNELS, 3, 3),
    "linear": weights(CHANNELS, CHANNELS),
    "score": weights(CHANNELS),
    "token": weights(1, 1, CHANNELS),
    "order": torch.randperm(TOKENS, generator=torch.Generator().manual_seed(5)),
    "mask": torch.arange(TOKENS).fmod(3).gt(0)[:, None].float(),
    "kept": torch.arange(TOKENS)[torch.arange(TOKENS).fmod(3).gt(0)],
    "lower": torch.ones(TOKENS, TOKENS).tril(),
    "goals": torch.randint(TOKENS // 2, (TOKENS // 2,), generator=torch.Generator().manual_seed(5)),
    "recurrent": recurrent(),
}


def grid(z: Tensor) -> Tensor:
    """(batch, tokens, channels) → (batch, channels, height, width)."""
    return z.mT.unflatten(2, (SIDE, SIDE))


def explicit_attention(s: Any, z: Tensor) -> Tensor:
    scores = s.q(z) @ s.k(z).mT * CHANNELS**-0.5
    return z + scores.softmax(-1) @ s.v(z)


def attention_of_products(s: Any, z: Tensor) -> Tensor:
    scores = (s.q(z)[:, :, None] * s.k(z)[:, None]).sum(-1) * CHANNELS**-0.5
    shifted = (scores - scores.amax(-1, keepdim=True)).exp()
    return z + torch.einsum("bij,bjc->bic", shifted / shifted.sum(-1, keepdim=True), s.v(z))


def windows(z: Tensor) -> Tensor:
    """(batch × windows, tokens of a window, channels)."""
    parts = z.view(len(z), 2, SIDE // 2, 2, SIDE // 2, CHANNELS)
    return parts.transpose(2, 3).reshape(-1, TOKENS // 4, CHANNELS)


def whole(w: Tensor) -> Tensor:
    """The inverse of :func:`windows`."""
    return w.view(-1, 2, 2, SIDE // 2, SIDE // 2, CHANNELS).transpose(2, 3).reshape(-1, TOKENS, CHANNELS)


def shifts(s: Any, z: Tensor) -> Tensor:
    """A depthwise convolution as a sum of shifted maps."""
    padded = F.pad(grid(z), (1, 1, 1, 1))
    shifted = [
        padded[:, :, i : i + SIDE, j : j + SIDE] * s.kernels[:, 0, i, j, None, None] for i in range(3) for j in range(3)
    ]
    return tokens(torch.stack(shifted).sum(0))


def pooled(s: Any, z: Tensor) -> Tensor:
    """The mean of tokens by weights that depend on them, (batch, 1, channels)."""
    return ((z @ s.score).softmax(1)[..., None] * z).sum(1, keepdim=True)


def centred(z: Tensor) -> Tensor:
    return z - z.mean(-1, keepdim=True)


def written(s: Any, z: Tensor) -> Tensor:
    """Tokens after a class token, which is dropped again."""
    buffer = z.new_empty(len(z), TOKENS + 1, CHANNELS)
    buffer[:, 0], buffer[:, 1:] = s.token[0], z
    return explicit_attention(s, buffer)[:, 1:]


def gate(z: Tensor) -> Tensor:
    return z.mean(1, keepdim=True).sigmoid()


HALF = TOKENS // 2


def after_gelu(*spellings: Spelling) -> tuple[Spelling, ...]:
    """The spellings of tokens after a function that is not linear, whose factors do not count any more."""

    def then(spelling: Spelling) -> Spelling:
        return lambda s, z: spelling(s, F.gelu(z))

    return tuple(map(then, spellings))


def changed(write: Callable[[Any, Tensor, Tensor], Any]) -> Spelling:
    """A copy of the tokens that ``write(parts, copy, tokens)`` changes in place."""

    def body(s: Any, z: Tensor) -> Tensor:
        copy = z.clone()
        write(s, copy, z)
        return copy

    return body


def swapped(z: Tensor) -> Tensor:
    return z.roll(HALF, 1)


def set_halves(s: Any, copy: Tensor, z: Tensor) -> None:
    copy[:, :HALF], copy[:, HALF:] = F.gelu(z[:, HALF:]), z[:, :HALF]


def add_half(s: Any, copy: Tensor, z: Tensor) -> None:
    copy[:, :HALF] += F.gelu(z[:, HALF:])


def sample_column(z: Tensor) -> Tensor:
    return torch.arange(len(z))[:, None]


def merged(merge: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Spelling:
    """``merge(odd tokens, even tokens, goals)`` to as many as the odd ones, which the even ones then read.

    Goals do not depend on tokens, which may be alike but for rounding.
    """

    def body(s: Any, z: Tensor) -> Tensor:
        goal = s.goals.expand(len(z), -1)
        means = merge(z[:, 1::2], z[:, ::2], goal)
        return torch.stack((means.gather(1, by_channel(goal)), means), 2).flatten(1, 2)

    return body


def merged_by_matrix(odd: Tensor, even: Tensor, goal: Tensor) -> Tensor:
    pairs = torch.eye(HALF, dtype=odd.dtype)
    arrived = torch.cat((pairs.expand(len(odd), -1, -1), pairs[goal].mT), 2)
    return arrived / arrived.sum(2, keepdim=True) @ torch.cat((odd, even), 1)


STEPS: tuple[Step, ...] = (
    Step(
        "attention",
        (
            lambda s, z: z + F.scaled_dot_product_attention(s.q(z), s.k(z), s.v(z)),
            explicit_attention,
            attention_of_products,
        ),
    ),
    Step(
        "attention of two heads",
        (
            lambda s, z: joined(F.scaled_dot_product_attention(in_heads(s.q(z)), in_heads(s.k(z)), in_heads(z))),
            lambda s, z: joined((in_heads(s.q(z)) @ in_heads(s.k(z)).mT / 2**0.5).softmax(-1) @ in_heads(z)),
        ),
    ),
    Step(
        "attention in windows",
        (
            lambda s, z: whole(explicit_attention(s, windows(z))),
            lambda s, z: z + whole(F.scaled_dot_product_attention(windows(s.q(z)), windows(s.k(z)), windows(s.v(z)))),
        ),
    ),
    Step(
        "attention with a class token",
        (lambda s, z: explicit_attention(s, torch.cat((s.token.expand(len(z), -1, -1), z), 1))[:, 1:], written),
    ),
    Step(
        "token mixing",
        (
            lambda s, z: s.mixer @ z,
            lambda s, z: F.linear(z.mT, s.mixer).mT,
            lambda s, z: F.conv1d(z, s.mixer[..., None]),
            lambda s, z: torch.einsum("nm,bmc->bnc", s.mixer, z),
        ),
    ),
    Step(
        "depthwise convolution",
        (
            lambda s, z: F.gelu(tokens(F.conv2d(grid(z), s.kernels, padding=1, groups=CHANNELS))),
            lambda s, z: F.gelu(shifts(s, z)),
            lambda s, z: F.gelu(
                (F.unfold(grid(z), 3, padding=1).unflatten(1, (CHANNELS, 9)) * s.kernels.view(CHANNELS, 9, 1)).sum(2).mT
            ),
        ),
    ),
    Step(
        "convolution",
        (
            lambda s, z: tokens(F.conv2d(grid(z), s.dense, padding=1)),
            lambda s, z: (s.dense.flatten(1) @ F.unfold(grid(z), 3, padding=1)).mT,
        ),
    ),
    Step(
        "channel mixing",
        (
            lambda s, z: F.gelu(z @ s.linear.T),
            lambda s, z: F.gelu(tokens(F.conv2d(grid(z), s.linear[..., None, None]))),
            lambda s, z: F.gelu(torch.einsum("dc,bnc->bnd", s.linear, z)),
        ),
    ),
    Step(
        "norm",
        (
            lambda s, z: F.layer_norm(z, (CHANNELS,)),
            lambda s, z: centred(z) * (centred(z).square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
            lambda s, z: centred(z) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt(),
        ),
    ),
    Step(
        "gate",
        (
            lambda s, z: z * gate(z),
            lambda s, z: z * gate(z).expand_as(z),
            lambda s, z: torch.einsum("bnc,bc->bnc", z, gate(z)[:, 0]),
        ),
        labels_all=False,
    ),
    Step(
        "own gate",
        (lambda s, z: F.silu(z), lambda s, z: z * z.sigmoid(), lambda s, z: z.mul(1 / (1 + z.neg().exp()))),
    ),
    Step(
        "pooled summand",
        (
            lambda s, z: z + pooled(s, z),
            lambda s, z: z + ((z @ s.score).softmax(1)[:, None] @ z),
            lambda s, z: z + torch.einsum("bn,bnc->bc", (z @ s.score).softmax(1), z).unsqueeze(1).repeat(1, TOKENS, 1),
        ),
    ),
    Step(
        "order",
        (
            lambda s, z: z[:, s.order],
            lambda s, z: z.index_select(1, s.order),
            lambda s, z: z.gather(1, s.order[None, :, None].expand_as(z)),
        ),
    ),
    Step(
        "shift",
        (
            lambda s, z: tokens(grid(z).roll((1, -1), (2, 3))),
            lambda s, z: tokens(torch.cat((grid(z).roll(1, 2)[..., 1:], grid(z).roll(1, 2)[..., :1]), -1)),
        ),
    ),
    Step(
        "mean of neighbours",
        (
            lambda s, z: z + tokens(F.interpolate(F.avg_pool2d(grid(z), 2), scale_factor=2)),
            lambda s, z: z + whole(windows(z).mean(1, keepdim=True).expand(-1, TOKENS // 4, -1)),
        ),
    ),
    Step(
        "running mean",
        (
            lambda s, z: F.gelu(z.cumsum(1) / torch.arange(1, TOKENS + 1)[:, None]),
            lambda s, z: F.gelu((s.lower / torch.arange(1, TOKENS + 1)[:, None]) @ z),
        ),
    ),
    Step(
        "mean of the tokens that a mask keeps",
        (
            lambda s, z: z + (z * s.mask).sum(1, keepdim=True) / s.mask.sum(),
            lambda s, z: z + ((s.mask / s.mask.sum()).T @ z),
            lambda s, z: z + z[:, s.kept].mean(1, keepdim=True),
        ),
    ),
    Step(
        "tokens that are set",
        after_gelu(
            lambda s, z: torch.cat((F.gelu(z[:, HALF:]), z[:, :HALF]), 1),
            changed(set_halves),
            changed(lambda s, copy, z: copy.copy_(swapped(z)).narrow(1, 0, HALF).copy_(F.gelu(z[:, HALF:]))),
            changed(lambda s, copy, z: copy.copy_(swapped(z)).unflatten(1, (2, -1))[:, 0].copy_(F.gelu(z[:, HALF:]))),
            lambda s, z: swapped(z).index_copy_(1, torch.arange(HALF), F.gelu(z[:, HALF:])),
            lambda s, z: swapped(z).slice_scatter(F.gelu(z[:, HALF:]), 1, 0, HALF),
            lambda s, z: swapped(z).index_put((sample_column(z), torch.arange(HALF)), F.gelu(z[:, HALF:])),
        ),
    ),
    Step(
        "tokens that are changed",
        after_gelu(
            lambda s, z: torch.where(s.mask > 0, F.gelu(z), z),
            changed(lambda s, copy, z: copy.index_put_((sample_column(z), s.kept), F.gelu(z[:, s.kept]))),
            lambda s, z: z.index_copy(1, s.kept, F.gelu(z[:, s.kept])),
            lambda s, z: F.gelu(z) * s.mask + z * (1 - s.mask),
        ),
    ),
    Step(
        "tokens that are added",
        after_gelu(
            lambda s, z: torch.cat((z[:, :HALF] + F.gelu(z[:, HALF:]), z[:, HALF:]), 1),
            changed(add_half),
            changed(lambda s, copy, z: copy[:, :HALF].add_(F.gelu(z[:, HALF:]))),
            changed(lambda s, copy, z: copy.index_add_(1, torch.arange(HALF), F.gelu(z[:, HALF:]))),
            lambda s, z: z.index_put((sample_column(z), torch.arange(HALF)), F.gelu(z[:, HALF:]), accumulate=True),
        ),
    ),
    Step(
        "recurrence",
        (
            lambda s, z: s.recurrent(z)[0],
            lambda s, z: s.recurrent(z, z.new_zeros(1, len(z), CHANNELS))[0],
            lambda s, z: torch.gru(
                z.transpose(0, 1),
                z.new_zeros(1, len(z), CHANNELS),
                s.recurrent._flat_weights,
                True,
                1,
                0.0,
                False,
                False,
                False,
            )[0].transpose(0, 1),
        ),
    ),
    Step(
        "merging of tokens",
        (
            merged(merged_by_matrix),
            merged(lambda odd, even, goal: odd.scatter_reduce(1, by_channel(goal), even, "mean")),
        ),
    ),
)
