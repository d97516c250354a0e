"""Train a small vision transformer with CutMix on real digits, against the plain area target and the aligned target.

    python examples/train.py                       # both targets, same seed, same initial weights; prints a table
    python examples/train.py --methods aligned     # one of them
    python examples/train.py --methods saliencymix/plain saliencymix/aligned   # with another mixer
    python examples/train.py --output result.json  # the figures as JSON

CutMix labels a mixed picture by the area of its parts. Here a digit covers a third of the picture, and the rest is
background. Attention decides which part reaches the classifier; the aligned target follows it layer by layer.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import timm
import torch
from data import NUM_CLASSES, Digits, load_digits
from methods import Method, read_method
from mixers import MIXERS
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from training import SIZE, DigitTrainer, Recipe, accuracy, add_recipe, read_recipe


@dataclass(frozen=True)
class Settings:
    """Settings of the command line."""

    methods: tuple[Method, ...]
    recipe: Recipe
    output: Path | None


@dataclass(frozen=True)
class Result:
    """Figures of one training run. `lambda_gap` is the mean |λ − λ_area| over mixtures of different classes."""

    accuracy: float
    loss: float
    lambda_gap: float
    images_per_second: float
    seconds: float


def build_model(seed: int) -> nn.Module:
    """A vision transformer of timm for SIZE×SIZE pictures and 4×4 patches. The seed determines its weights."""
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


def run(method: Method, recipe: Recipe, train: Digits, test: Digits, progress: Progress) -> Result:
    """Train with one method. Tests after each epoch, and on more backgrounds at the end."""
    model = build_model(recipe.seed).to(recipe.device)
    trainer = DigitTrainer(method.prepare(model), recipe, MIXERS[method.mixer](model, recipe))
    task = progress.add_task(str(method), total=recipe.steps, loss="–", accuracy="–", speed="–")
    times = [time.perf_counter()]
    for step in trainer.train(train):
        times.append(time.perf_counter())
        speed = f"{images_per_second(times, recipe):.0f}"
        progress.update(task, completed=step, speed=speed, loss=f"{trainer.meter.loss:.3f}")
        if step % recipe.steps_per_epoch == 0:
            progress.update(task, accuracy=f"{accuracy(model, test, trainer.device):.1%}")
    final = accuracy(model, test, trainer.device, rounds=recipe.rounds)
    progress.update(task, accuracy=f"{final:.1%}")
    seconds = time.perf_counter() - times[0]
    return Result(final, trainer.meter.loss, trainer.meter.lambda_gap, images_per_second(times, recipe), seconds)


def images_per_second(times: list[float], recipe: Recipe) -> float:
    """Pictures per second in the median step, which includes making and mixing them.

    The median, because the first step also captures the model, and the first step of an epoch also includes a test.
    """
    return recipe.batch_size / median(later - sooner for sooner, later in pairwise(times))


def show_progress(console: Console) -> Progress:
    """Progress bars with loss, test accuracy and speed."""
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
    """Train all requested methods in turn."""
    recipe = settings.recipe
    train, test = load_digits(recipe.train, recipe.test, size=SIZE)
    with show_progress(console) as progress:
        return {str(method): run(method, recipe, train, test, progress) for method in settings.methods}


def render(results: dict[str, Result], settings: Settings) -> Table:
    """A table of the figures."""
    recipe = settings.recipe
    table = Table(title=f"{recipe.epochs} epochs of {recipe.train} digits, seed {recipe.seed}")
    table.add_column("method")
    for name in ("accuracy", "loss", "mean |λ − λ_area|", "images/s", "seconds"):
        table.add_column(name, justify="right")
    for method, result in results.items():
        gap = f"{result.lambda_gap:.4f}"
        figures = (f"{result.accuracy:.1%}", f"{result.loss:.3f}", gap)
        table.add_row(method, *figures, f"{result.images_per_second:.0f}", f"{result.seconds:.0f}")
    return table


def parse(arguments: list[str] | None = None) -> Settings:
    """Settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--methods", nargs="+", type=read_method, default=[Method.parse("plain"), Method.parse("aligned")],
        metavar="METHOD", help="as in examples/compare.py (default: plain aligned)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of weights, order, backgrounds and mixing (default: %(default)s)")
    add("--output", type=Path, help="write the figures to this JSON file")
    add_recipe(parser, epochs=12, batch_size=64, lr=2e-3, mix_prob=1.0)
    options = parser.parse_args(arguments)
    return Settings(tuple(options.methods), read_recipe(parser, options, options.seed), options.output)


def main() -> None:
    """Train, print the table and write the figures."""
    settings, console = parse(), Console()
    results = run_methods(settings, console)
    console.print(render(results, settings))
    if settings.output:
        figures = {method: asdict(result) for method, result in results.items()}
        record = {"settings": {"methods": list(results), **asdict(settings.recipe)}, "results": figures}
        settings.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
