"""Runs to compare, and the folder that keeps figures and weights of finished runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from architectures import build
from data import load_digits
from methods import Method
from mixers import MIXERS, NETWORKS
from torch import nn
from training import SIZE, DigitTrainer, Recipe, accuracy

import tlfx
from tlfx.system.files import write_atomically

__all__ = ["UNCHANGED", "Result", "Run", "SettingsError", "execute", "finished"]

SEPARATORS = str.maketrans(":/", "++")  # characters of methods that names of folders cannot have
UNCHANGED = "labels as aligned"
"""Recorded instead of figures if the policy changes no label rule of the architecture, so that the run is skipped."""


class SettingsError(ValueError):
    """The folder holds this run with different settings."""


@dataclass(frozen=True)
class Run:
    """One architecture, trained with one method and a recipe, which includes the seed."""

    architecture: str
    method: Method
    recipe: Recipe

    def __str__(self) -> str:
        return f"{self.architecture} {self.method}, seed {self.recipe.seed}"

    @property
    def parameters(self) -> int:
        """Number of parameters of the architecture, and of the network that its mixer trains before, if it has one."""
        names = (self.architecture, *NETWORKS.get(self.method.mixer, ()))
        return sum(p.numel() for name in names for p in build(name, 0).parameters())

    @property
    def images(self) -> int:
        """Number of images in all steps."""
        return self.recipe.steps * self.recipe.batch_size

    def file(self, folder: Path) -> Path:
        """The file of its figures; its weights, a state_dict, are in the same folder with the suffix .pt."""
        return folder / self.architecture / str(self.method).translate(SEPARATORS) / f"{self.recipe.seed}.json"


@dataclass(frozen=True)
class Result:
    """Figures of a finished run: test accuracy, mean |λ − λ_area| in training, loss of the last epoch, and times."""

    accuracy: float
    lambda_gap: float
    loss: float
    capture_seconds: float
    train_seconds: float


def finished(run: Run, folder: Path) -> Result | str | None:
    """The figures of a run, or UNCHANGED; None if it is not finished, or damaged on disk.

    Raises SettingsError if the folder holds this run with a different recipe, because their figures cannot be compared.
    """
    file = run.file(folder)
    try:
        record = json.loads(file.read_text())
        recipe = Recipe(**record["recipe"])
        result = UNCHANGED if record["result"] == UNCHANGED else Result(**record["result"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if recipe != run.recipe:
        raise SettingsError(
            f"{file} was trained with {_differing(recipe, run.recipe)}, expected {_differing(run.recipe, recipe)}: "
            "pass the same settings, or another --output"
        )
    return result if result == UNCHANGED or file.with_suffix(".pt").exists() else None


def execute(run: Run, folder: Path) -> None:
    """Train and test one run, and write its weights and then its figures, both atomically."""
    recipe, file = run.recipe, run.file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    model = build(run.architecture, recipe.seed).to(recipe.device)
    began = time.perf_counter()
    if not _prepare(model, run):
        _write_record(run, file, UNCHANGED)
        return
    captured = time.perf_counter()
    train, test = load_digits(recipe.train, recipe.test, size=SIZE)
    method = run.method
    trainer = DigitTrainer(model, recipe, MIXERS[method.mixer](model, recipe), method.scale, method.blend)
    loading = time.perf_counter()
    for _ in trainer.train(train):
        pass
    seconds = {"capture_seconds": captured - began, "train_seconds": time.perf_counter() - loading}
    share = accuracy(model, test, trainer.device, rounds=recipe.rounds)
    result = Result(share, trainer.meter.lambda_gap, trainer.meter.loss, **seconds)
    write_atomically(file.with_suffix(".pt"), lambda raw: torch.save(model.state_dict(), raw))
    _write_record(run, file, asdict(result))


def _prepare(model: nn.Module, run: Run) -> bool:
    """Align the model if the method asks for it; False if its policy gives the same graph as the default policy."""
    method, example = run.method, torch.zeros(2, 3, SIZE, SIZE, device=run.recipe.device)
    bare = replace(method, scale=1.0, blend=1.0)  # these change the target, not the graph
    variants = dict.fromkeys((replace(bare, policy=tlfx.Policy()), bare))
    codes = {_code(variant.prepare(model), example) for variant in variants}
    return len(codes) == len(variants)


def _code(model: nn.Module, example: torch.Tensor) -> str:
    """Code of the aligned graph; empty for a model that is not aligned."""
    return tlfx.aligned_code(model, example) if isinstance(model, tlfx.Aligned) else ""


def _write_record(run: Run, file: Path, result: dict[str, Any] | str) -> None:
    record = {
        "architecture": run.architecture,
        "method": str(run.method),
        "recipe": asdict(run.recipe),
        "result": result,
        "torch": torch.__version__,
    }
    write_atomically(file, lambda raw: raw.write((json.dumps(record, indent=2) + "\n").encode()))


def _differing(recipe: Recipe, other: Recipe) -> str:
    """The settings of a recipe that differ from those of another."""
    ours, theirs = asdict(recipe), asdict(other)
    return ", ".join(f"{name}={value}" for name, value in ours.items() if value != theirs[name])
