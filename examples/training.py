"""Training on mixed pictures of real digits, against the area target or the target that an aligned model returns."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from data import Digits
from torch import Tensor, nn
from trainer import Mixing, Trainer

import tlfx
from tlfx.errors import InputError
from tlfx.system.devices import choose_device

__all__ = ["SIZE", "DigitMeter", "DigitTrainer", "Recipe", "accuracy", "add_recipe", "read_recipe"]

SIZE = 28


@dataclass(frozen=True)
class Recipe:
    """Settings that compared runs have in common: budget, data, and the seed of order, backgrounds and mixing.

    `clip` is the largest norm of the gradients of a step, 0 for no limit; each test digit is shown on `rounds`
    backgrounds.
    """

    epochs: int
    batch_size: int
    train: int
    test: int
    lr: float
    mix_prob: float
    seed: int
    device: str
    clip: float = 0.0
    rounds: int = 4

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return self.train // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass
class DigitMeter:
    """Figures of a run: losses of the current epoch, and |λ − λ_area| of each mixture of different classes."""

    losses: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def update(self, loss: Tensor, gaps: Tensor) -> None:
        """Add one step; gaps (B,) are NaN for images that are not a mixture of different classes."""
        self.losses.append(loss.item())
        self.gaps += gaps[~gaps.isnan()].tolist()

    @property
    def loss(self) -> float:
        """Mean loss of the current epoch."""
        return fmean(self.losses)

    @property
    def lambda_gap(self) -> float:
        """Mean |λ − λ_area| over all mixtures of different classes so far."""
        return fmean(self.gaps) if self.gaps else 0.0


class DigitTrainer(Trainer):
    """Trains a model on mixed digits, with AdamW and a cosine schedule; a model that is aligned, on aligned targets."""

    meter: DigitMeter

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        mixer: Mixing,
        target_scale: float = 1.0,
        blend: float | Literal["agreement"] = 1.0,
    ) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.05, fused=True)
        aligned = isinstance(model, tlfx.Aligned)
        device, meter = torch.device(recipe.device), DigitMeter()
        super().__init__(
            model, optimizer, mixer, meter, device, aligned=aligned, target_scale=target_scale, blend=blend
        )
        self.recipe = recipe
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate)

    def train(self, data: Digits) -> Iterator[int]:
        """Train for all epochs, each digit on a new background in each; yields the number of steps done after each.

        Seeds the global generators: the same seed gives the same pictures, mixed in the same way, for any model.
        """
        np.random.seed(self.recipe.seed)  # some mixers draw from numpy, as timm's does
        torch.manual_seed(self.recipe.seed)  # other mixers and drop path draw from torch
        done = 0
        for epoch in range(self.recipe.epochs):
            self.meter.losses.clear()
            for batch in data.batches(self.recipe.batch_size, 1000 * self.recipe.seed + epoch, shuffle=True):
                self.descend([batch])
                self.scheduler.step()
                done += 1
                yield done

    def clip(self) -> None:
        """Limit the norm of the gradients, if the recipe does."""
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)

    def _learning_rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up over 15 % of the steps, cosine decay."""
        total = self.recipe.steps
        return min(1.0, (step + 1) / (0.15 * total)) * 0.5 * (1.0 + math.cos(math.pi * step / total))


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits, device: torch.device, rounds: int = 1) -> float:
    """Share of test pictures that are classified correctly; every digit is shown on `rounds` backgrounds."""
    model.eval()
    right = 0
    for seed in range(rounds):
        for images, labels in data.batches(250, seed, shuffle=False):
            right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
    return right / (rounds * len(data))


def add_recipe(parser: ArgumentParser, **defaults: float | str) -> None:
    """Add the flags of a recipe to a command line, all but the seed. `defaults` replace those of the flags.

    The flags' own are the early recipe of examples/RESULTS.md.
    """
    add = parser.add_argument
    add("--epochs", type=int, default=4, help="passes over the digits (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="pictures in a step, an even number (default: %(default)s)")
    add("--train", type=int, default=4000, help="digits to train on (default: %(default)s)")
    add("--test", type=int, default=1000, help="digits to test on, not used for training (default: %(default)s)")
    add("--lr", type=float, default=3e-3, help="highest learning rate (default: %(default)s)")
    add("--mix-prob", type=float, default=0.5, help="share of the steps that mix pictures (default: %(default)s)")
    add("--clip", type=float, default=0.0, help="largest norm of the gradients, 0 for no limit (default: %(default)s)")
    add("--rounds", type=int, default=4, help="backgrounds of each test digit (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, mps, or auto for the accelerator if there is one "
        "(default: %(default)s)")  # fmt: skip
    parser.set_defaults(**defaults)


def read_recipe(parser: ArgumentParser, options: Namespace, seed: int) -> Recipe:
    """The recipe of the flags of :func:`add_recipe`. Exits with a message if it is not valid."""
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe) if f.name != "seed"}, seed=seed)
    size = recipe.batch_size
    if size < 2 or size % 2 or size > recipe.train:
        parser.error(f"--batch-size {size}: expected an even number, at most --train {recipe.train}")
    if min(recipe.epochs, recipe.test, recipe.rounds) < 1 or recipe.train + recipe.test > 5000:
        parser.error("expected --epochs, --test and --rounds of at least 1, and 5000 digits in all")
    if not 0.0 <= recipe.mix_prob <= 1.0:
        parser.error(f"--mix-prob {recipe.mix_prob}: expected a share between 0 and 1")
    if recipe.clip < 0:
        parser.error(f"--clip {recipe.clip}: expected a positive norm, or 0 for no limit")
    try:
        return replace(recipe, device=str(choose_device(recipe.device)))
    except InputError as error:
        parser.error(str(error))
