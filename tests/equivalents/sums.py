"""Spellings of sums: residual connections, cumulative sums, shifts and recurrences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, TOKENS, Group, tokens

__all__ = ["GROUPS"]


def flipped(z: Tensor) -> Tensor:
    return tokens(z).flip(1)


ZERO = Group("a summand times zero").add(
    without=lambda s, z: s.q(tokens(z)),
    alpha=lambda s, z: torch.add(s.q(tokens(z)), flipped(z), alpha=0),
    alpha_of_sub=lambda s, z: torch.sub(s.q(tokens(z)), flipped(z), alpha=0),
    lerp=lambda s, z: torch.lerp(s.q(tokens(z)), flipped(z), 0.0),
    lerp_by_a_tensor=lambda s, z: torch.lerp(flipped(z), s.q(tokens(z)), torch.tensor(1.0)),
    times_zero=lambda s, z: s.q(tokens(z)) + 0 * flipped(z),
    times_zeros=lambda s, z: s.q(tokens(z)) + torch.zeros(TOKENS, 1) * flipped(z),
    mean_times_zero=lambda s, z: s.q(tokens(z)) + 0.0 * tokens(z).mean(1, keepdim=True),
    beta=lambda s, z: torch.baddbmm(flipped(z), tokens(z), s.q.weight.mT.expand(len(z), -1, -1), beta=0) + s.q.bias,
    addcmul=lambda s, z: torch.addcmul(s.q(tokens(z)), flipped(z), tokens(z), value=0),
    zeros_like=lambda s, z: s.q(tokens(z)) + torch.zeros_like(flipped(z)),
)

RESIDUAL = Group("residual connection").add(
    plus=lambda s, z: tokens(z) + s.q(flipped(z)),
    other_order=lambda s, z: s.q(flipped(z)) + tokens(z),
    alpha=lambda s, z: torch.add(tokens(z), s.q(flipped(z)), alpha=2),
    minus=lambda s, z: tokens(z) - s.q(flipped(z)),
    lerp=lambda s, z: torch.lerp(tokens(z), s.q(flipped(z)), 0.5),
    addmm=lambda s, z: torch.baddbmm(tokens(z), flipped(z), s.q.weight.mT.expand(len(z), -1, -1)),
    in_place=lambda s, z: tokens(z).clone().add_(s.q(flipped(z))),
    mean_of_a_stack=lambda s, z: torch.stack((tokens(z), s.q(flipped(z)))).mean(0),
    sum_of_a_stack=lambda s, z: torch.stack((tokens(z), s.q(flipped(z))), -1).sum(-1),
    as_image=lambda s, z: tokens(z + s.q(flipped(z)).mT.reshape(z.shape)),
)

CUMULATIVE = Group("cumulative sum").add(
    cumsum=lambda s, z: tokens(z).cumsum(1)[:, [3, 7]],
    padded=lambda s, z: F.pad(tokens(z), (0, 0, 2, 0)).cumsum(1)[:, [5, 9]],
    sums=lambda s, z: torch.stack([tokens(z)[:, :i].sum(1) for i in (4, 8)], 1),
    triangle=lambda s, z: (torch.ones(TOKENS, TOKENS).tril() @ tokens(z))[:, [3, 7]],
)


def shift_in_place(s: Any, z: Tensor) -> Tensor:
    t = tokens(z)
    out = torch.zeros_like(t)
    out[:, :-1, :1] = t[:, 1:, :1]
    out[:, 1:, 1:2] = t[:, :-1, 1:2]
    out[:, :, 2:] = t[:, :, 2:]
    return s.q(out)


def shift_by_roll(s: Any, z: Tensor) -> Tensor:
    t = tokens(z)
    up, down = t[..., :1].roll(-1, 1).clone(), t[..., 1:2].roll(1, 1) * (torch.arange(TOKENS) > 0)[:, None]
    up[:, -1] = 0
    return s.q(torch.cat((up, down, t[..., 2:]), 2))


def shift_by_cat(s: Any, z: Tensor) -> Tensor:
    t, zero = tokens(z), torch.zeros(len(z), 1, 1)
    up, down = torch.cat((t[:, 1:, :1], zero), 1), torch.cat((zero, t[:, :-1, 1:2]), 1)
    return s.q(torch.cat((up, down, t[..., 2:]), 2))


def shift_by_pad(s: Any, z: Tensor) -> Tensor:
    t = tokens(z)
    up, down = F.pad(t[:, 1:, :1], (0, 0, 0, 1)), F.pad(t[:, :-1, 1:2], (0, 0, 1, 0))
    return s.q(torch.cat((up, down, t[..., 2:]), 2))


SHIFTS = Group("channels shifted along tokens").add(
    pad=shift_by_pad, cat=shift_by_cat, in_place=shift_in_place, roll=shift_by_roll
)


def state(z: Tensor) -> Tensor:
    return z.mean((2, 3))


GRU = nn.GRU(CHANNELS, CHANNELS, batch_first=True)
LSTM = nn.LSTM(CHANNELS, CHANNELS, batch_first=True)

STATE = Group("recurrence with an initial state", {"gru": GRU, "lstm": LSTM}).add(
    gru=lambda s, z: s.gru(tokens(z)[:, :3], state(z)[None])[0],
    lstm=lambda s, z: s.lstm(tokens(z)[:, :3], (state(z)[None], state(z)[None]))[0],
    lstm_without_a_cell=lambda s, z: s.lstm(tokens(z)[:, :3], (state(z)[None], torch.zeros(1, len(z), CHANNELS)))[0],
    cumsum=lambda s, z: torch.cat((state(z)[:, None], tokens(z)[:, :3]), 1).cumsum(1)[:, 1:],
    step_by_step=lambda s, z: torch.cat(
        [s.gru(tokens(z)[:, :steps], state(z)[None])[1].transpose(0, 1) for steps in (1, 2, 3)], 1
    ),
)

GROUPS = [ZERO, RESIDUAL, CUMULATIVE, SHIFTS, STATE]
