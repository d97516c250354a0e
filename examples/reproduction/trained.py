"""Tables 5 and 6: transfer, generalisation and robustness of models that were trained on ImageNet."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.runs import EXAMPLES, MISSING, best

__all__ = ["TABLE5", "TABLE6", "evaluate", "transfer"]

MODELS = {"DeiT-T": "deit_tiny", "DeiT-S": "deit_small", "DeiT-B": "deit_base"}
DATASETS = {"C-10": "cifar10", "C-100": "cifar100", "Flowers": "flowers102", "Cars": "stanford_cars"}
"""Columns of Table 5, and the data sets of torchvision."""
SETS = {
    "IN-V2↑": ("imagenet-v2", "imagenetv2-matched-frequency-format-val", "top1"),
    "IN-A↑": ("imagenet-a", "imagenet-a", "top1"),
    "IN-C↓": ("imagenet-c", "ImageNet-C", "mce"),
    "IN-R↑": ("imagenet-r", "imagenet-r", "top1"),
    "AutoAttack↑": ("imagenet", "val", "attack"),
}
"""Columns of Table 6: data set, its folder, and the metric: top-1, mean corruption error, or top-1 under AutoAttack."""
TABLE5 = {
    "DeiT-T": ("97.6", "85.7", "97.1", "90.1"),
    "DeiT-T +TL-Align": ("97.8", "86.4", "97.9", "90.7"),
    "DeiT-S": ("97.9", "90.2", "98.1", "91.4"),
    "DeiT-S +TL-Align": ("98.8", "90.4", "98.3", "91.8"),
    "DeiT-B": ("99.1", "90.8", "98.4", "92.1"),
    "DeiT-B +TL-Align": ("99.1", "90.5", "98.6", "93.0"),
}
TABLE6 = {
    "DeiT-T": ("60.4", "7.7", "69.1", "34.1", "3.9"),
    "DeiT-T +TL-Align": ("61.4", "6.1", "68.0", "34.6", "4.4"),
    "DeiT-S": ("68.5", "18.9", "54.7", "42.5", "6.9"),
    "DeiT-S +TL-Align": ("68.9", "19.2", "53.2", "43.2", "7.5"),
    "DeiT-B": ("70.5", "27.9", "48.5", "45.3", "-"),
    "DeiT-B +TL-Align": ("70.9", "29.0", "47.1", "44.4", "-"),
}
"""Figures as printed. (The heads of its columns FLOPs and Params are exchanged; the ε of AutoAttack is not printed.)"""


def _stem(row: str) -> str:
    """The file of weights of a row, without .pth: deit_small, or deit_small_aligned."""
    model, _, aligned = row.partition(" ")
    return MODELS[model] + ("_aligned" if aligned else "")


def transfer(data: Path, weights: Path, folder: Path, show: bool, extra: Sequence[str]) -> list[list[str]]:
    """Fine-tune the weights of each row on each data set, or print the commands: rows of new and of printed figures."""
    rows = []
    for row, printed in TABLE5.items():
        found = []
        for name in DATASETS.values():
            out, model = folder / f"{_stem(row)}_{name}", f"{MODELS[row.partition(' ')[0]]}_patch16_224"
            _run(
                *("train_imagenet.py", "--config", EXAMPLES / "recipes" / "transfer.yaml", "--model", model),
                *("--initial-checkpoint", weights / f"{_stem(row)}.pth", "--reset-classifier"),
                *("--dataset", f"torch/{name}", "--data-dir", data, "--output", out, *extra),
                *(["--resume"] if (out / "last.pth.tar").exists() else []),
                show=show,
            )
            found.append(best(out))
        rows.append([row, *found, *printed])
    return rows


def evaluate(data: Path, weights: Path, folder: Path, show: bool, extra: Sequence[str]) -> list[list[str]]:
    """Evaluate the weights of each row on each data set, or print the commands: rows of measured and printed figures.

    As in the paper, DeiT-B is not attacked. Files of finished evaluations are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row, printed in TABLE6.items():
        found = []
        for (dataset, place, metric), expected in zip(SETS.values(), printed, strict=True):
            file = folder / f"{_stem(row)}_{place}_{metric}.json"
            if expected != "-" and not file.exists():
                _run(
                    *("evaluate.py", "--model", f"{MODELS[row.partition(' ')[0]]}_patch16_224"),
                    *("--checkpoint", weights / f"{_stem(row)}.pth", "--data-dir", data / place, "--dataset", dataset),
                    *(("--attack", "autoattack") if metric == "attack" else ()),
                    *("--json", file, *extra),
                    show=show,
                )
            found.append(_figure(file, metric))
        rows.append([row, *found, *printed])
    return rows


def _figure(file: Path, metric: str) -> str:
    """A figure of a file of evaluate.py, in percent; – if there is no such file."""
    if not file.exists():
        return MISSING
    record = json.loads(file.read_text())
    return f"{record['attack']['top1'] if metric == 'attack' else record[metric]:.1f}"


def _run(script: str, *arguments: object, show: bool) -> None:
    """Run an example, or print the command only."""
    parts = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    print(shlex.join(parts), flush=True)
    if not show:
        subprocess.run(parts, check=True)
