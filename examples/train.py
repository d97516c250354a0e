"""Train a small vision transformer with CutMix on real digits, with the plain area target and with the aligned one.

    python examples/train.py                       # both methods, same seed, same first weights, then a table
    python examples/train.py --method aligned      # one of them
    python examples/train.py --output result.json  # figures for a machine to read

CutMix labels a mixed picture by the area of its parts. Here a digit covers a third of the picture and the rest is
background, and attention decides which part reaches the classifier; the aligned target follows it layer by layer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import timm
import torch
import torch.nn.functional as F
from data import NUM_CLASSES, Digits, load_digits
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import tlfx
from tlfx.mix import MixedTarget, Mixup

SIZE = 28
METHODS = ("plain", "aligned")


@dataclass(frozen=True)
class Settings:
    """What the command line can set."""

    method: str
    epochs: int
    batch_size: int
    train: int
    test: int
    lr: float
    seed: int
    device: str
    output: Path | None


@dataclass(frozen=True)
class Result:
    """Figures of one training run. `lambda_gap` is the mean |λ_aligned − λ_area| over pairs of different classes."""

    accuracy: float
    loss: float
    lambda_gap: float
    images_per_second: float
    seconds: float


@dataclass
class Meter:
    """What a training run has measured: losses of the present epoch, |λ − λ_area| per pair, seconds per step."""

    losses: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def update(self, loss: Tensor, soft: Tensor, target: MixedTarget) -> None:
        """Take in one step; |λ − λ_area| is half the L1 distance of two targets (B, NUM_CLASSES) over two classes."""
        gaps = (soft - target.area()).abs().sum(1) / 2
        self.losses.append(loss.item())
        self.gaps += gaps[target.first != target.second].tolist()

    @property
    def loss(self) -> float:
        """Mean over the present epoch."""
        return fmean(self.losses)

    @property
    def steps_per_second(self) -> float:
        """Median, since the first step also captures the model's graph."""
        return 1.0 / median(self.seconds)


def build_model(seed: int) -> nn.Module:
    """A vision transformer of timm for SIZE×SIZE pictures and 4×4 patches; the same weights for the same seed."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=4,
        num_classes=NUM_CLASSES,
    )


def forward(model: nn.Module, images: Tensor, target: MixedTarget, method: str) -> tuple[Tensor, Tensor]:
    """Logits and the soft target to train against, both (B, NUM_CLASSES)."""
    if method == "aligned":
        logits, soft = model(images, target)
    else:
        logits, soft = model(images), target.area()
    return logits, soft


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits, device: torch.device, rounds: int = 1) -> float:
    """Share of test pictures that are classified right; every digit is seen on `rounds` backgrounds."""
    model.eval()
    right = 0
    for seed in range(rounds):
        for images, labels in data.batches(250, seed, shuffle=False):
            right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
    return right / (rounds * len(data))


def learning_rate(step: int, total: int) -> float:
    """Factor of the learning rate: linear warm-up over 15 % of the steps, cosine decay."""
    return min(1.0, (step + 1) / (0.15 * total)) * 0.5 * (1.0 + math.cos(math.pi * step / total))


class Trainer:
    """One training run of one method."""

    def __init__(self, method: str, settings: Settings, train: Digits, test: Digits) -> None:
        self.method, self.settings, self.train, self.test = method, settings, train, test
        self.device = torch.device(settings.device)
        self.model = build_model(settings.seed).to(self.device)
        if method == "aligned":
            self.model = tlfx.align(self.model)
        np.random.seed(settings.seed)  # the mixer draws from numpy, as timm's does
        self.mixer = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=NUM_CLASSES)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.lr, weight_decay=0.05)
        self.steps = settings.epochs * (len(train) // settings.batch_size)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: learning_rate(step, self.steps))
        self.meter = Meter()

    def run(self, progress: Progress, task: TaskID) -> Result:
        """Train for all epochs and test at the end."""
        progress.start_task(task)
        began = time.perf_counter()
        for epoch in range(self.settings.epochs):
            self.run_epoch(epoch, progress, task)
            progress.update(task, accuracy=f"{accuracy(self.model, self.test, self.device):.1%}")
        final = accuracy(self.model, self.test, self.device, rounds=4)
        progress.update(task, accuracy=f"{final:.1%}")
        gap = fmean(self.meter.gaps) if self.meter.gaps else 0.0
        return Result(final, self.meter.loss, gap, self.images_per_second, time.perf_counter() - began)

    def run_epoch(self, epoch: int, progress: Progress, task: TaskID) -> None:
        """One pass over the digits, each on a new background."""
        self.model.train()
        self.meter.losses.clear()
        seed = 1000 * self.settings.seed + epoch
        began = time.perf_counter()
        for images, labels in self.train.batches(self.settings.batch_size, seed, shuffle=True):
            self.step(images.to(self.device), labels.to(self.device))
            now = time.perf_counter()
            self.meter.seconds.append(now - began)
            began = now
            speed, loss = f"{self.images_per_second:.0f}", f"{self.meter.loss:.3f}"
            progress.update(task, advance=1, speed=speed, loss=loss)

    @property
    def images_per_second(self) -> float:
        """Pictures that a median step trains on in a second, making and mixing them included."""
        return self.settings.batch_size * self.meter.steps_per_second

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Mix, predict, and descend the cross-entropy with the soft target."""
        mixed, target = self.mixer(images, labels)
        logits, soft = forward(self.model, mixed, target, self.method)
        loss = F.cross_entropy(logits, soft)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.meter.update(loss, soft, target)


def show_progress(console: Console) -> Progress:
    """Bars with loss, test accuracy and speed."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("accuracy {task.fields[accuracy]}"),
        TextColumn("{task.fields[speed]} images/s"),
        TimeElapsedColumn(),
        console=console,
    )


def run_methods(settings: Settings, console: Console) -> dict[str, Result]:
    """Train every method that was asked for, one after another."""
    train, test = load_digits(settings.train, settings.test, size=SIZE)
    methods = METHODS if settings.method == "both" else (settings.method,)
    results = {}
    with show_progress(console) as progress:
        for method in methods:
            trainer = Trainer(method, settings, train, test)
            task = progress.add_task(method, start=False, total=trainer.steps, loss="–", accuracy="–", speed="–")
            results[method] = trainer.run(progress, task)
    return results


def render(results: dict[str, Result], settings: Settings) -> Table:
    """The figures side by side."""
    table = Table(title=f"CutMix, {settings.epochs} epochs of {settings.train} digits, seed {settings.seed}")
    table.add_column("target")
    for name in ("accuracy", "loss", "mean |λ_aligned − λ_area|", "images/s", "seconds"):
        table.add_column(name, justify="right")
    for method, result in results.items():
        gap = f"{result.lambda_gap:.4f}" if method == "aligned" else "–"
        figures = (f"{result.accuracy:.1%}", f"{result.loss:.3f}", gap)
        table.add_row(method, *figures, f"{result.images_per_second:.0f}", f"{result.seconds:.0f}")
    return table


def parse(arguments: list[str] | None = None) -> Settings:
    """Settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--method", choices=[*METHODS, "both"], default="both", help="what to train against (default: %(default)s)")
    add("--epochs", type=int, default=12, help="passes over the digits (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="pictures a step, an even number (default: %(default)s)")
    add("--train", type=int, default=4000, help="digits to train on (default: %(default)s)")
    add("--test", type=int, default=1000, help="digits to test on, none of them trained on (default: %(default)s)")
    add("--lr", type=float, default=2e-3, help="highest learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, order, backgrounds and mixing (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, mps, or auto for an accelerator if there is one")
    add("--output", type=Path, help="write the figures to this JSON file")
    settings = Settings(**vars(parser.parse_args(arguments)))
    if settings.batch_size < 2 or settings.batch_size % 2 or settings.batch_size > settings.train:
        parser.error(f"--batch-size {settings.batch_size}: expected an even number, at most --train {settings.train}")
    if settings.epochs < 1 or settings.test < 1 or settings.train + settings.test > 5000:
        parser.error("expected --epochs and --test of at least 1, and 5000 digits in all")
    return replace(settings, device=find_device(settings.device))


def find_device(name: str) -> str:
    """`name`, or for "auto" the accelerator of this machine, if any."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return name if name != "auto" else str(accelerator or "cpu")


def main() -> None:
    """Train, show the table and write the figures."""
    settings, console = parse(), Console()
    results = run_methods(settings, console)
    console.print(render(results, settings))
    if settings.output:
        figures = {method: asdict(result) for method, result in results.items()}
        record = {"settings": asdict(settings) | {"output": str(settings.output)}, "results": figures}
        settings.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
