"""Spellings of token mixing by parameters, wherever tokens, channels and heads lie."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, in_heads, joined, tokens

__all__ = ["GROUPS"]


def matrix(s: Any) -> Tensor:
    return s.conv.weight[..., 0]


MIXING = Group("token mixing", {"conv": nn.Conv1d(TOKENS, TOKENS, 1, bias=False)}).add(
    matmul=lambda s, z: matrix(s) @ tokens(z),
    linear=lambda s, z: F.linear(z.flatten(2), matrix(s)).mT,
    einsum=lambda s, z: torch.einsum("nm,bmc->bnc", matrix(s), tokens(z)),
    tensordot=lambda s, z: torch.tensordot(tokens(z), matrix(s), ([1], [1])).mT,
    baddbmm=lambda s, z: torch.baddbmm(torch.zeros(1, 1, 1), matrix(s).expand(len(z), -1, -1), tokens(z)),
    conv1d=lambda s, z: s.conv(tokens(z)),
    conv2d=lambda s, z: F.conv2d(tokens(z)[..., None], s.conv.weight[..., None])[..., 0],
    conv1d_with_a_kernel_of_three=lambda s, z: F.conv1d(tokens(z), F.pad(s.conv.weight, (1, 1)), padding=1),
    channels_in_the_batch=lambda s, z: F.linear(z.reshape(-1, TOKENS), matrix(s)).view(-1, CHANNELS, TOKENS).mT,
    flattened_channels=lambda s, z: (z.flatten(0, 1).flatten(1) @ matrix(s).T).view(-1, CHANNELS, TOKENS).mT,
    half_of_the_channels_in_the_batch=lambda s, z: (
        F.linear(z.reshape(-1, 2, TOKENS), matrix(s)).view(-1, CHANNELS, TOKENS).mT
    ),
    addmm=lambda s, z: torch.addmm(torch.zeros(1), z.reshape(-1, TOKENS), matrix(s).T).view(-1, CHANNELS, TOKENS).mT,
    product=lambda s, z: (matrix(s)[None, :, :, None] * tokens(z)[:, None]).sum(2),
    product_expanded=lambda s, z: (matrix(s)[None, :, :, None] * tokens(z)[:, None].expand(-1, TOKENS, -1, -1)).sum(2),
)


def heads_of(z: Tensor) -> Tensor:
    """(batch, 2 heads, tokens, channels)."""
    return in_heads(tokens(z))


HEADS = Group("token mixing by two heads", {"conv": nn.Conv1d(2 * TOKENS, 2 * TOKENS, 1, groups=2, bias=False)}).add(
    einsum=lambda s, z: joined(torch.einsum("hnm,bhmd->bhnd", matrix(s).unflatten(0, (2, -1)), heads_of(z))),
    matmul=lambda s, z: joined(matrix(s).unflatten(0, (2, -1)) @ heads_of(z)),
    groups=lambda s, z: joined(s.conv(heads_of(z).flatten(1, 2)).unflatten(1, (2, -1))),
    groups_of_images=lambda s, z: joined(
        F.conv2d(heads_of(z).flatten(1, 2)[..., None], s.conv.weight[..., None], groups=2)[..., 0].unflatten(1, (2, -1))
    ),
    product=lambda s, z: joined((matrix(s).unflatten(0, (2, -1))[None, ..., None] * heads_of(z)[:, :, None]).sum(3)),
)


def registered(s: Any, z: Tensor) -> Tensor:
    return torch.cat((s.registers.expand(len(z), -1, -1), tokens(z)), 1)


LONG = TOKENS + 2
REGISTERS = Group(
    "token mixing with registers",
    {"conv": nn.Conv1d(LONG, LONG, 1, bias=False), "registers": nn.Parameter(torch.zeros(1, 2, CHANNELS))},
).add(
    matmul=lambda s, z: matrix(s) @ registered(s, z),
    linear=lambda s, z: F.linear(registered(s, z).mT, matrix(s)).mT,
    channels_in_the_batch=lambda s, z: (
        F.linear(registered(s, z).mT.reshape(-1, LONG), matrix(s)).view(-1, CHANNELS, LONG).mT
    ),
    conv1d=lambda s, z: s.conv(registered(s, z)),
    einsum=lambda s, z: torch.einsum("nm,bmc->bnc", matrix(s), registered(s, z)),
)


def columns(z: Tensor) -> Tensor:
    """(batch, columns, rows and their channels)."""
    return z.permute(0, 3, 2, 1).flatten(2)


def rows_of(mixed: Tensor) -> Tensor:
    """(batch, columns, rows, channels) → (batch, tokens, channels)."""
    return mixed.transpose(1, 2).flatten(1, 2)


def apart(s: Any) -> Tensor:
    """(rows out, channels out, rows, channels)."""
    return s.rows.weight.view(SIDE, CHANNELS, SIDE, CHANNELS)


def channels_first(s: Any) -> Tensor:
    return apart(s).permute(1, 0, 3, 2).reshape(SIDE * CHANNELS, -1)


PERMUTATOR = Group(
    "mixing of rows and channels at once", {"rows": nn.Linear(SIDE * CHANNELS, SIDE * CHANNELS, bias=False)}
).add(
    linear=lambda s, z: rows_of(s.rows(columns(z)).unflatten(2, (SIDE, CHANNELS))),
    matmul=lambda s, z: rows_of((columns(z) @ s.rows.weight.T).view(len(z), SIDE, SIDE, CHANNELS)),
    channels_first=lambda s, z: rows_of(
        F.linear(z.permute(0, 3, 1, 2).flatten(2), channels_first(s)).unflatten(2, (CHANNELS, SIDE)).mT
    ),
    convolution=lambda s, z: (
        F.conv1d(columns(z).mT, s.rows.weight[..., None]).unflatten(1, (SIDE, CHANNELS)).transpose(2, 3).flatten(1, 2)
    ),
    einsum=lambda s, z: torch.einsum("bchw,gdhc->bgwd", z, apart(s)).flatten(1, 2),
    tensordot=lambda s, z: torch.tensordot(z, apart(s), ([2, 1], [2, 3])).transpose(1, 2).flatten(1, 2),
)


def over_slots(s: Any, z: Tensor) -> Tensor:
    """Attention weights (batch, tokens, slots) of a Linformer, whose slots are mixed from the keys by a matrix."""
    return (s.q(tokens(z)) @ (s.slots.weight @ s.k(tokens(z))).mT).softmax(-1)


LINFORMER = Group("attention to mixed keys and values", {"slots": nn.Linear(TOKENS, 5, bias=False)}).add(
    matmul=lambda s, z: over_slots(s, z) @ (s.slots.weight @ s.v(tokens(z))),
    einsums=lambda s, z: torch.einsum(
        "bnk,bkd->bnd",
        torch.einsum(
            "bnd,bkd->bnk", s.q(tokens(z)), torch.einsum("bmd,mk->bkd", s.k(tokens(z)), s.slots.weight.T)
        ).softmax(-1),
        torch.einsum("bmd,mk->bkd", s.v(tokens(z)), s.slots.weight.T),
    ),
    weights_by_einsum_of_three=lambda s, z: (
        torch.einsum("bnd,bmd,mk->bnk", s.q(tokens(z)), s.k(tokens(z)), s.slots.weight.T).softmax(-1)
        @ (s.slots.weight @ s.v(tokens(z)))
    ),
    einsum_of_three=lambda s, z: torch.einsum("bnk,bmd,mk->bnd", over_slots(s, z), s.v(tokens(z)), s.slots.weight.T),
    in_another_order=lambda s, z: torch.einsum("bnk,mk,bmd->bnd", over_slots(s, z), s.slots.weight.T, s.v(tokens(z))),
)

GROUPS = [MIXING, HEADS, REGISTERS, PERMUTATOR, LINFORMER]
