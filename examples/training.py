"""A training run of the examples: mixed pictures of real digits, against the area target or the one a model gives."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from data import Digits
from torch import Tensor, nn

import tlfx
from tlfx.mix import MixedTarget

__all__ = ["SIZE", "Meter", "Mixing", "Recipe", "Trainer", "accuracy", "add_recipe", "read_recipe"]

SIZE = 28

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, MixedTarget]]
"""A mixer of `tlfx.mix`: from images and labels to mixed images and their target."""


@dataclass(frozen=True)
class Recipe:
    """What runs share that are compared: budget, data, and the seed of order, backgrounds and mixing."""

    epochs: int
    batch_size: int
    train: int
    test: int
    lr: float
    mix_prob: float
    seed: int
    device: str

    @property
    def steps_per_epoch(self) -> int:
        """Full batches only."""
        return self.train // self.batch_size

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass
class Meter:
    """What a run has measured: losses of the present epoch, and |λ − λ_area| per mixture of different classes."""

    losses: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def update(self, loss: Tensor, soft: Tensor, target: MixedTarget) -> None:
        """Take in one step; |λ − λ_area| is half the L1 distance of two targets (B, classes)."""
        area = target.area()
        gaps = (soft - area).abs().sum(1) / 2
        self.losses.append(loss.item())
        self.gaps += gaps[area.count_nonzero(1) > 1].tolist()

    @property
    def loss(self) -> float:
        """Mean over the present epoch."""
        return fmean(self.losses)

    @property
    def lambda_gap(self) -> float:
        """Mean |λ − λ_area| over all mixtures of different classes so far."""
        return fmean(self.gaps) if self.gaps else 0.0


class Trainer:
    """Trains a model on mixed pictures: against the target that reaches it if it is aligned, else against the area."""

    def __init__(self, model: nn.Module, recipe: Recipe, mixer: Mixing) -> None:
        self.model, self.recipe, self.mixer, self.device = model, recipe, mixer, torch.device(recipe.device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.05, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._learning_rate)
        self.meter = Meter()

    def train(self, data: Digits) -> Iterator[int]:
        """Train for all epochs, each digit on a new background in each; yields the number of steps done, after each.

        The same seed gives the same pictures, mixed the same way, whatever the model. Seeds the global generators.
        """
        np.random.seed(self.recipe.seed)  # some mixers draw from numpy, as timm's does
        torch.manual_seed(self.recipe.seed)  # other mixers and drop path draw from torch
        done = 0
        for epoch in range(self.recipe.epochs):
            self.model.train()
            self.meter.losses.clear()
            for images, labels in data.batches(self.recipe.batch_size, 1000 * self.recipe.seed + epoch, shuffle=True):
                self.step(images.to(self.device), labels.to(self.device))
                done += 1
                yield done

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Mix, predict, and descend the cross-entropy with the soft target."""
        mixed, target = self.mixer(images, labels)
        logits, soft = self._forward(mixed, target)
        loss = F.cross_entropy(logits, soft)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.meter.update(loss, soft, target)

    def _forward(self, images: Tensor, target: MixedTarget) -> tuple[Tensor, Tensor]:
        """Logits and the soft target to train against, both (B, NUM_CLASSES)."""
        if isinstance(self.model, tlfx.Aligned):
            logits, soft = self.model(images, target)
        else:
            logits, soft = self.model(images), target.area()
        return logits, soft

    def _learning_rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up over 15 % of the steps, cosine decay."""
        total = self.recipe.steps
        return min(1.0, (step + 1) / (0.15 * total)) * 0.5 * (1.0 + math.cos(math.pi * step / total))


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits, device: torch.device, rounds: int = 1) -> float:
    """Share of test pictures that are classified right; every digit is seen on `rounds` backgrounds."""
    model.eval()
    right = 0
    for seed in range(rounds):
        for images, labels in data.batches(250, seed, shuffle=False):
            right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
    return right / (rounds * len(data))


def add_recipe(parser: ArgumentParser, *, epochs: int, batch_size: int, lr: float, mix_prob: float) -> None:
    """Add the flags of a recipe but for its seed, with these defaults, to a command line."""
    add = parser.add_argument
    add("--epochs", type=int, default=epochs, help="passes over the digits (default: %(default)s)")
    add("--batch-size", type=int, default=batch_size, help="pictures a step, an even number (default: %(default)s)")
    add("--train", type=int, default=4000, help="digits to train on (default: %(default)s)")
    add("--test", type=int, default=1000, help="digits to test on, none of them trained on (default: %(default)s)")
    add("--lr", type=float, default=lr, help="highest learning rate (default: %(default)s)")
    add("--mix-prob", type=float, default=mix_prob, help="share of the steps that mix (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, mps, or auto for an accelerator if there is one")


def read_recipe(parser: ArgumentParser, options: Namespace, seed: int) -> Recipe:
    """The recipe that the flags of :func:`add_recipe` ask for; leaves with a message if it cannot be run."""
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe) if f.name != "seed"}, seed=seed)
    size = recipe.batch_size
    if size < 2 or size % 2 or size > recipe.train:
        parser.error(f"--batch-size {size}: expected an even number, at most --train {recipe.train}")
    if recipe.epochs < 1 or recipe.test < 1 or recipe.train + recipe.test > 5000:
        parser.error("expected --epochs and --test of at least 1, and 5000 digits in all")
    if not 0.0 <= recipe.mix_prob <= 1.0:
        parser.error(f"--mix-prob {recipe.mix_prob}: expected a share between 0 and 1")
    return replace(recipe, device=_find_device(recipe.device))


def _find_device(name: str) -> str:
    """`name`, or for "auto" the accelerator of this machine, if any."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return name if name != "auto" else str(accelerator or "cpu")
