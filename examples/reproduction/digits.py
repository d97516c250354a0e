"""Tables 5 and 6 on digits: the small DeiT-S of Table 1, plain and aligned, on other data and under attack."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import glyphs
import torch
from architectures import build
from data import MEAN, NUM_CLASSES, STD, Digits, load_digits
from evaluation import attacks
from evaluation.accuracy import measure
from evaluation.attacks import Threat
from evaluation.classifier import Classifier
from evaluation.corruption import Baseline, Corrupted
from evaluation.folders import Classes
from evaluation.options import EPS
from experiment import Run
from methods import Method
from torch import Tensor, nn
from training import SIZE, DigitTrainer, Recipe, accuracy

from reproduction.corruptions import CORRUPTIONS, corrupt
from reproduction.runs import MISSING, finish, spread
from reproduction.trained import TABLE5, TABLE6
from tlfx.errors import InputError
from tlfx.mix import Mixup

__all__ = ["NOTES", "SETS", "SHIFTS", "evaluate", "transfer"]

Sets = Callable[[int, int], tuple[Digits, Digits]]
SETS: dict[str, Sets] = {
    "UCI digits": glyphs.uci_digits,
    "printed digits": lambda train, test: glyphs.printed(string.digits, train, test),
    "printed A–Z": lambda train, test: glyphs.printed(string.ascii_uppercase, train, test),
    "printed a–z": lambda train, test: glyphs.printed(string.ascii_lowercase, train, test),
}
"""Data sets of the small Table 5."""
ATTACKED = 100
SHIFTS = ("digits↑", "UCI digits↑", "hard digits↑", "mCE↓", "printed digits↑", "AutoAttack↑")
"""Columns of the small Table 6."""
REFERENCE = "convnext"
"""Its errors choose the hard digits, and mCE is relative to them, as ResNet-50 and AlexNet on ImageNet."""
NOTES = {
    5: "Small version: the ViT of Table 1, fine-tuned on other characters on the same photos, with MixUp and CutMix, "
    "without alignment. UCI digits: of other writers. Printed: the test characters are in other fonts. In percent.",
    6: "Small version: the ViT of Table 1 on test digits; on digits of other writers (for IN-V2); on test digits that "
    "a ConvNeXt classifies incorrectly (IN-A); mCE relative to that ConvNeXt (IN-C) under "
    f"{', '.join(CORRUPTIONS)}; on printed digits (IN-R); "
    f"on {ATTACKED} test digits under AutoAttack, Linf 8/255. In percent.",
}
"""What the columns of a small table are."""
ROWS = {"DeiT-S": "plain", "DeiT-S +TL-Align": "aligned"}
"""Rows that have a small version, and the method of their model."""


def transfer(recipe: Recipe, seeds: Sequence[int], folder: Path, jobs: int) -> list[list[str]]:
    """Fine-tune the models of each row on each of SETS: rows of new and of printed figures."""
    runs = _runs(seeds, recipe)
    finish([run for each in runs.values() for run in each], folder, jobs)
    sets = [make(recipe.train, recipe.test) for make in SETS.values()]
    cells_of = {
        row: [spread([fine_tune(run, folder, *parts) for run in of]) for parts in sets] for row, of in runs.items()
    }
    return [[row, *cells_of.get(row, [MISSING] * len(sets)), *printed] for row, printed in TABLE5.items()]


def fine_tune(run: Run, folder: Path, train: Digits, test: Digits) -> float:
    """Accuracy in percent after fine-tuning on about half as many pictures as the run was trained on.

    As `recipes/transfer.yaml`: a new classifier, MixUp or CutMix by the batch, no alignment.
    """
    model: Any = load(run, folder)
    classes = int(train.labels.max()) + 1
    model.reset_classifier(classes)
    recipe = run.recipe
    batch = min(recipe.batch_size, len(train) // 2 * 2)
    epochs = max(1, recipe.epochs * recipe.train // (2 * len(train)))
    recipe = replace(recipe, train=len(train), batch_size=batch, epochs=epochs)
    mixer = Mixup(0.8, 1.0, prob=recipe.mix_prob, label_smoothing=0.0, num_classes=classes)
    trainer = DigitTrainer(model, recipe, mixer)
    for _ in trainer.train(train):
        pass
    return 100 * accuracy(model, test, trainer.device, rounds=4)


def evaluate(recipe: Recipe, seeds: Sequence[int], folder: Path, jobs: int) -> list[list[str]]:
    """Evaluate the models of each row on each of SHIFTS: rows of new and of printed figures."""
    attacks.check(Threat("autoattack", "Linf", EPS, 0), NUM_CLASSES)
    runs = _runs(seeds, recipe)
    references = [Run(REFERENCE, Method(), replace(recipe, seed=seed)) for seed in seeds]
    finish([run for each in (*runs.values(), references) for run in each], folder, jobs)
    figures_of: dict[str, list[list[float]]] = {row: [] for row in runs}
    for place, reference in enumerate(references):
        models = {row: classifier(runs[row][place], folder) for row in runs}
        for row, figures in _shifted(models, classifier(reference, folder), reference.recipe).items():
            figures_of[row].append(figures)
    cells = {row: [spread(column) for column in zip(*figures, strict=True)] for row, figures in figures_of.items()}
    return [[row, *cells.get(row, [MISSING] * len(SHIFTS)), *printed] for row, printed in TABLE6.items()]


def _shifted(models: dict[str, Classifier], reference: Classifier, recipe: Recipe) -> dict[str, list[float]]:
    """Figures of each model, in the order of SHIFTS."""
    device = torch.device(recipe.device)
    digits = pictures(load_digits(recipe.train, recipe.test, size=SIZE)[1])
    others, drawn = (pictures(SETS[name](recipe.train, recipe.test)[0]) for name in ("UCI digits", "printed digits"))
    hard = missed(reference, digits, device)
    errors = corrupted_errors([reference, *models.values()], digits, device)
    reference_errors = baseline(errors[0])
    figures = {}
    for (row, model), own in zip(models.items(), errors[1:], strict=True):
        top1 = {name: measure(model, _batches(data), device, amp=False).top1 for name, data in
                {"digits": digits, "others": others, "hard": hard, "printed": drawn}.items()}  # fmt: skip
        threat = Threat("autoattack", "Linf", EPS, recipe.seed)
        made = attacks.attack(threat, model, NUM_CLASSES, device)
        first = (digits[0][:ATTACKED], digits[1][:ATTACKED])
        attacked = attacks.robustness(made, threat, model, [first], device).top1
        mce = Corrupted(own, reference_errors).mce
        figures[row] = [top1["digits"], top1["others"], top1["hard"], mce, top1["printed"], attacked]
    return figures


Labelled = tuple[Tensor, Tensor]
"""Pictures uint8 (N, 3, SIDE, SIDE), and labels int64 (N,)."""


def pictures(data: Digits) -> Labelled:
    """Each digit once, on a photo that is always the same."""
    parts = list(data.batches(250, 0, shuffle=False))
    images = torch.cat([images for images, _ in parts]) * STD + MEAN
    return (255 * images).round().clamp(0, 255).byte(), torch.cat([labels for _, labels in parts])


def missed(model: Classifier, data: Labelled, device: torch.device) -> Labelled:
    """The pictures that a model classifies incorrectly. Raises InputError if there are none."""
    with torch.inference_mode():
        predicted = [model(images.to(device).float() / 255).argmax(1).cpu() for images, _ in _batches(data)]
    wrong = torch.cat(predicted) != data[1]
    if not wrong.any():
        raise InputError(
            f"the {REFERENCE} classifies all test digits correctly, so none are hard: pass a larger --test"
        )
    return data[0][wrong], data[1][wrong]


def corrupted_errors(
    models: Sequence[Classifier], data: Labelled, device: torch.device
) -> list[dict[str, list[float]]]:
    """Errors of each model under each of CORRUPTIONS at severities 1 to 5."""
    errors: list[dict[str, list[float]]] = [{name: [] for name in CORRUPTIONS} for _ in models]
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            images = corrupt(data[0], name, severity)
            for model, own in zip(models, errors, strict=True):
                own[name].append(measure(model, _batches((images, data[1])), device, amp=False).error)
    return errors


def baseline(errors: dict[str, list[float]]) -> Baseline:
    """The errors of the reference. Raises InputError for a corruption without errors, whose ratio is undefined."""
    means = {name: sum(errors_of) / len(errors_of) for name, errors_of in errors.items()}
    if perfect := [name for name, mean in means.items() if not mean]:
        raise InputError(
            f"the {REFERENCE} has no errors under {', '.join(perfect)}, so that mCE is undefined: pass a larger --test"
        )
    return Baseline(means)


def _batches(data: Labelled, size: int = 250) -> list[Labelled]:
    return list(zip(*(part.split(size) for part in data), strict=True))


def _runs(seeds: Sequence[int], recipe: Recipe) -> dict[str, list[Run]]:
    """The runs of Table 1 by row, for each seed."""
    return {
        row: [Run("vit", Method.parse(method), replace(recipe, seed=seed)) for seed in seeds]
        for row, method in ROWS.items()
    }


def load(run: Run, folder: Path) -> nn.Module:
    """The plain model of a finished run, with its weights."""
    model = build(run.architecture, run.recipe.seed).to(run.recipe.device)
    model.load_state_dict(torch.load(run.file(folder).with_suffix(".pt"), run.recipe.device, weights_only=True))
    return model


def classifier(run: Run, folder: Path) -> Classifier:
    """The model of a finished run, on pixels."""
    names = {str(label): label for label in range(NUM_CLASSES)}
    made = Classifier(load(run, folder), Classes(names, NUM_CLASSES, "digits"), [MEAN] * 3, [STD] * 3)
    return made.to(run.recipe.device)
