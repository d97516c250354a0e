"""Accuracy and robustness of a trained model (Table 6 of the paper), from folders of images.

    python examples/evaluate.py --model deit_small_patch16_224 --checkpoint CKPT --data-dir imagenet/val
    python examples/evaluate.py … --dataset imagenet-v2 --data-dir imagenetv2-matched-frequency-format-val
    python examples/evaluate.py … --dataset imagenet-c --data-dir ImageNet-C --clean-dir imagenet/val --json c.json
    python examples/evaluate.py … --data-dir imagenet/val --attack autoattack --eps 4/255 --images 5000

A checkpoint is a file written by timm, by an example of tlfx, or by torch.save(model.state_dict()). Aligned and plain
models have the same checkpoints. The names of class folders depend on --dataset:

    imagenet      WordNet ids; also for imagenet-a and imagenet-r, which use the logits of their 200 classes only
    imagenet-v2   class indices, in numeric order
    imagenet-c    [GROUP/]CORRUPTION/SEVERITY/ followed by WordNet ids; mCE is relative to AlexNet or to another
                  --baseline, such as the --json file of another model
    folder        any names, whose alphabetical order is that of the logits, or the order of --class-map

Attacks operate on pixels in [0, 1]; the normalisation is a part of the model. An image counts as correct under attack
if it is also correct without. AutoAttack (Croce and Hein, ICML 2020) is the standard version of its authors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from class_folders import ClassFolders, message_of
from evaluation import attacks
from evaluation.accuracy import Score, measure
from evaluation.attacks import Robustness, Threat, robustness
from evaluation.classifier import Classifier, build, load_weights
from evaluation.corruption import SEVERITIES, Corrupted, find_corruptions, read_baseline
from evaluation.folders import Classes, check, classes_of, find_root
from evaluation.options import Settings, parse
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from tlfx.errors import InputError, TlfxError
from tlfx.system.files import write_atomically

IMAGENET_C_CROP = 1.0  # its images are cropped already


class Evaluation:
    """A classifier and the preprocessing of its images. Raises TlfxError for invalid settings."""

    def __init__(self, settings: Settings, classes: Classes, console: Console) -> None:
        self.settings, self.classes, self.console = settings, classes, console
        model = self._model()
        names = ("img_size", "crop_pct", "interpolation", "mean", "std")
        self.config = resolve_data_config({name: getattr(settings, name) for name in names}, model=model)
        classifier = Classifier(model, classes, self.config["mean"], self.config["std"])
        self.classifier = classifier.to(settings.device)

    def _model(self) -> nn.Module:
        settings, file = self.settings, self.settings.checkpoint
        logits, pretrained = self.classes.logits, file is None
        model = build(settings.model, logits, settings.kwargs, settings.path, settings.img_size, pretrained)
        if file is not None:
            load_weights(model, settings.model, file, settings.use_ema)
        return model

    def batches(self, root: Path, title: str, config: Mapping[str, Any]) -> Iterable[tuple[Tensor, Tensor]]:
        """Batches of uint8 images and labels, preprocessed as ``config`` says, with a progress bar."""
        settings = self.settings
        data: Any = ClassFolders(root, self.classes.labels, create_transform(**config, normalize=False))
        if settings.images is not None:
            if settings.images > len(data):
                raise InputError(f"--images {settings.images}: {root} holds {len(data)}")
            drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(settings.seed))
            data = Subset(data, sorted(drawn[: settings.images].tolist()))
        pinned = settings.device.type == "cuda"
        loader: Any = DataLoader(data, settings.batch_size, num_workers=settings.workers, pin_memory=pinned)
        return track(loader, title, console=self.console, transient=True, disable=not self.console.is_terminal)

    def score(self, root: Path, title: str, config: Mapping[str, Any] | None = None) -> Score:
        """Accuracy on the images of a folder, preprocessed as ``config`` or, by default, as the model says."""
        batches = self.batches(root, title, config or self.config)
        return measure(self.classifier, batches, self.settings.device, self.settings.amp)

    def under_attack(self, root: Path, threat: Threat) -> Robustness:
        """Accuracy on the images of a folder under an attack."""
        device = self.settings.device
        made = attacks.attack(threat, self.classifier, len(self.classes.labels), device)
        return robustness(made, threat, self.classifier, self.batches(root, threat.name, self.config), device)


def evaluate(settings: Settings, console: Console) -> tuple[Table, dict[str, Any]]:
    """Check all settings, then evaluate: the table to print, and the record to write."""
    run = evaluate_corruptions if settings.dataset == "imagenet-c" else evaluate_images
    table, record = run(settings, console)
    file = None if settings.checkpoint is None else str(settings.checkpoint)
    data = {"dataset": settings.dataset, "data_dir": str(settings.data_dir)}
    return table, {"model": settings.model, "checkpoint": file, "ema": settings.use_ema, **data, **record}


def evaluate_images(settings: Settings, console: Console) -> tuple[Table, dict[str, Any]]:
    """Accuracy on one folder, and under an attack if the settings name one."""
    root, threat = find_root(settings.data_dir), settings.threat
    classes = classes_of(settings.dataset, root, settings.class_map)
    folders = check(root, classes)
    if threat is not None:
        attacks.check(threat, len(classes.labels))
    evaluation = Evaluation(settings, classes, console)
    score = evaluation.score(root, settings.dataset)
    table = _table("", "classes", "images", "top-1", f"top-{score.k}")
    counts = (f"{len(folders)} of {len(classes.labels)}", str(score.images))
    table.add_row("clean", *counts, f"{score.top1:.2f}", f"{score.topk:.2f}")
    record = {"config": evaluation.config, "images": score.images, "folders": len(folders)}
    record |= {"classes": len(classes.labels), "top1": score.top1, f"top{score.k}": score.topk}
    if threat is not None:
        result = evaluation.under_attack(root, threat)
        table.add_row(_told(threat), *counts, f"{result.top1:.2f}", "–")
        record["attack"] = threat.about | asdict(result)
    return table, record


def evaluate_corruptions(settings: Settings, console: Console) -> tuple[Table, dict[str, Any]]:
    """Errors by corruption and severity, and mCE relative to the baseline."""
    folders = find_corruptions(settings.data_dir, settings.corruptions)
    baseline = read_baseline(settings.baseline, settings.corruptions)
    classes = classes_of(settings.dataset, settings.data_dir)
    clean_root = None if settings.clean_dir is None else find_root(settings.clean_dir)
    for root in chain([] if clean_root is None else [clean_root], *folders.values()):
        check(root, classes)
    evaluation = Evaluation(settings, classes, console)
    config = evaluation.config if settings.crop_pct else {**evaluation.config, "crop_pct": IMAGENET_C_CROP}
    clean = None if clean_root is None else evaluation.score(clean_root, "clean").error
    errors = {
        name: [evaluation.score(root, f"{name} {root.name}", config).error for root in roots]
        for name, roots in folders.items()
    }
    corrupted = Corrupted(errors, baseline, clean)
    record = {"config": config, "clean_error": clean, "errors": corrupted.errors, "by_severity": errors}
    record |= {"baseline": str(settings.baseline), "ce": corrupted.ce, "mce": corrupted.mce}
    return _render(corrupted), {**record, "relative_mce": corrupted.relative_mce}


def _render(corrupted: Corrupted) -> Table:
    """Errors in percent by corruption and severity, and corruption errors."""
    table = _table("error by severity", *SEVERITIES, "mean", "CE")
    for name, errors in corrupted.by_severity.items():
        table.add_row(name, *(f"{100 * e:.2f}" for e in (*errors, corrupted.errors[name])), f"{corrupted.ce[name]:.2f}")
    table.add_section()
    blank = [""] * len(SEVERITIES)
    for name, mean in {"mCE": corrupted.mce, "relative mCE": corrupted.relative_mce}.items():
        if mean is not None:
            table.add_row(f"{name} of {len(corrupted.errors)}", *blank, "", f"{mean:.2f}")
    if corrupted.clean is not None:
        table.add_row("clean", *blank, f"{100 * corrupted.clean:.2f}", "")
    return table


def _heading(settings: Settings) -> str:
    average = ", moving average" if settings.use_ema else ""
    return f"{settings.model} ({settings.checkpoint or 'published weights'}{average}) on {settings.dataset}, percent"


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _told(threat: Threat) -> str:
    eps = f"{255 * threat.eps:g}/255" if threat.norm == "Linf" else f"{threat.eps:g}"
    return f"{threat.name} {threat.norm} {eps}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print the table and write the figures. Returns the exit status."""
    settings, console = parse(__doc__, arguments), Console()
    try:
        table, record = evaluate(settings, console)
    except TlfxError as error:
        print(f"evaluate.py: {message_of(error)}", file=sys.stderr)
        return 2
    console.print(_heading(settings), highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    if settings.json is not None:
        write_atomically(settings.json, lambda raw: raw.write((json.dumps(record, indent=2) + "\n").encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
