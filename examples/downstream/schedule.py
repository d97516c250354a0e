"""Learning rates by update, as functions of the number of finished updates, and the groups of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["Schedule", "make_optimizer", "poly", "steps"]

Factor = Callable[[int], float]
"""The learning rate after a number of updates, as a share of the highest one."""


def poly(updates: int, power: float, warmup: int, start: float = 1e-6) -> Factor:
    """(1 − done/updates)^power, times a linear warm-up that begins at the share ``start``, as in mmsegmentation.

    >>> factor = poly(100, 1.0, 10)
    >>> [round(factor(done), 3) for done in (0, 5, 10, 50, 100)]
    [0.0, 0.475, 0.9, 0.5, 0.0]
    """
    return lambda done: max(1 - done / updates, 0.0) ** power * _warm(done, warmup, start)


def steps(milestones: Sequence[int], warmup: int, start: float = 1e-3) -> Factor:
    """A tenth after each milestone, times a linear warm-up that begins at the share ``start``, as in mmdetection.

    >>> factor = steps([60, 90], 10)
    >>> [round(factor(done), 3) for done in (0, 10, 59, 60, 90)]
    [0.001, 1.0, 1.0, 0.1, 0.01]
    """
    return lambda done: 0.1 ** sum(done >= m for m in milestones) * _warm(done, warmup, start)


def _warm(done: int, warmup: int, start: float) -> float:
    return 1.0 if done >= warmup else start + (1 - start) * done / warmup


class Schedule:
    """Sets the learning rates of an optimizer after each update; with the interface of timm's schedulers."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Factor) -> None:
        self.optimizer, self.factor = optimizer, factor
        self.highest = [group["lr"] for group in optimizer.param_groups]
        self.step_update(0)

    def step_update(self, done: int) -> None:
        """Set the learning rates after ``done`` updates."""
        for group, highest in zip(self.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = highest * self.factor(done)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the rate depends only on the number of updates."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`state_dict`."""


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without decay of normalisation and position parameters, as in Swin's downstream configurations."""
    norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    free = {id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters()}
    undecayed = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed", "cls_token")
    free |= {id(p) for name, p in model.named_parameters() if name.endswith(undecayed)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.999))
