"""Tables 5 and 6: transfer, generalisation and robustness of models that were trained on ImageNet."""

from __future__ import annotations

import json

from reproduction.real import MODELS, RealRuns, stem
from reproduction.runs import EXAMPLES, MISSING, best
from tlfx.errors import InputError

__all__ = ["DATASETS", "SETS", "SIZE", "TABLE5", "TABLE6", "evaluate", "transfer"]

DATASETS = {"C-10": "cifar10", "C-100": "cifar100", "Flowers": "flowers102", "Cars": "stanford_cars"}
"""Columns of Table 5, and the data sets of torchvision."""
SETS = {
    "Top-1↑": ("imagenet", "val", "top1"),
    "Top-5↑": ("imagenet", "val", "top5"),
    "IN-V2↑": ("imagenet-v2", "imagenetv2-matched-frequency-format-val", "top1"),
    "IN-A↑": ("imagenet-a", "imagenet-a", "top1"),
    "IN-C↓": ("imagenet-c", "ImageNet-C", "mce"),
    "IN-R↑": ("imagenet-r", "imagenet-r", "top1"),
    "AutoAttack↑": ("imagenet", "val", "attack"),
}
"""Columns of Table 6: data set, its folder, and the metric: accuracy, mCE, or top-1 under AutoAttack."""
SIZE = ("Params", "FLOPs")
"""Columns that Tables 3 to 6 print before the others."""
TABLE5 = {
    "ResNet50": ("26M", "4.1G", "-", "-", "96.2", "90.0"),
    "ViT-B/16": ("86M", "55.4G", "98.1", "87.1", "89.5", "-"),
    "ViT-L/16": ("307M", "190.7G", "97.9", "86.4", "89.7", "-"),
    "DeiT-T": ("5.7M", "1.6G", "97.6", "85.7", "97.1", "90.1"),
    "DeiT-T +TL-Align": ("5.7M", "1.6G", "97.8", "86.4", "97.9", "90.7"),
    "DeiT-S": ("22M", "4.6G", "97.9", "90.2", "98.1", "91.4"),
    "DeiT-S +TL-Align": ("22M", "4.6G", "98.8", "90.4", "98.3", "91.8"),
    "DeiT-B": ("86M", "17.5G", "99.1", "90.8", "98.4", "92.1"),
    "DeiT-B +TL-Align": ("86M", "17.5G", "99.1", "90.5", "98.6", "93.0"),
}
TABLE6 = {
    "DeiT-T": ("5.7M", "1.6G", "72.2", "91.3", "60.4", "7.7", "69.1", "34.1", "3.9"),
    "DeiT-T +TL-Align": ("5.7M", "1.6G", "73.2", "91.7", "61.4", "6.1", "68.0", "34.6", "4.4"),
    "DeiT-S": ("22M", "4.6G", "79.8", "95.0", "68.5", "18.9", "54.7", "42.5", "6.9"),
    "DeiT-S +TL-Align": ("22M", "4.6G", "80.6", "95.0", "68.9", "19.2", "53.2", "43.2", "7.5"),
    "DeiT-B": ("86M", "17.5G", "81.8", "95.5", "70.5", "27.9", "48.5", "45.3", "-"),
    "DeiT-B +TL-Align": ("86M", "17.5G", "82.3", "95.8", "70.9", "29.0", "47.1", "44.4", "-"),
}
"""Figures as printed; the first three models of Table 5 are those of other papers. In Table 6, the heads of the columns
FLOPs and Params are exchanged, and the ε of AutoAttack is not printed."""


def transfer(runs: RealRuns) -> list[list[str]]:
    """Fine-tune the weights of each DeiT on each data set: rows of new and of printed figures."""
    rows = []
    for row, printed in TABLE5.items():
        cells = [_fine_tuned(row, name, runs) if "DeiT" in row else MISSING for name in DATASETS.values()]
        rows.append([row, *cells, *printed])
    return rows


def _fine_tuned(row: str, dataset: str, runs: RealRuns) -> str:
    out = runs.folder / f"{stem(row)}_{dataset}"
    recipe = (
        "--config",
        EXAMPLES / "recipes" / "transfer.yaml",
        "--model",
        _timm(row),
        "--dataset",
        f"torch/{dataset}",
    )
    runs.train("train_imagenet.py", out, *recipe, "--initial-checkpoint", runs.file(row), "--reset-classifier")
    return best(out)


def _timm(row: str) -> str:
    return f"{MODELS[row.partition(' ')[0]]}_patch16_224"


def evaluate(runs: RealRuns) -> list[list[str]]:
    """Evaluate the weights of each row on each data set: rows of measured and printed figures.

    As in the paper, DeiT-B is not attacked. Files of finished evaluations are kept. Raises InputError for several
    processes.
    """
    if runs.processes > 1:
        raise InputError("Table 6: evaluate.py runs in one process; leave out --nproc")
    runs.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row, printed in TABLE6.items():
        cells = zip(SETS.values(), printed[len(SIZE) :], strict=True)
        rows.append(
            [row, *(_evaluated(row, *part, runs) if cell != "-" else MISSING for part, cell in cells), *printed]
        )
    return rows


def _evaluated(row: str, dataset: str, place: str, metric: str, runs: RealRuns) -> str:
    """A figure in percent; MISSING if its evaluation is only printed. Top-1 and top-5 are figures of one evaluation."""
    file = runs.folder / f"{stem(row)}_{place}_{'top1' if metric == 'top5' else metric}.json"
    if not file.exists() and metric != "top5":
        attack = ("--attack", "autoattack") if metric == "attack" else ()
        given = ("--checkpoint", runs.file(row), "--data-dir", runs.data / place, "--dataset", dataset)
        runs.start("evaluate.py", "--model", _timm(row), *given, *attack, "--json", file, *runs.extra)
    if not file.exists():
        return MISSING
    record = json.loads(file.read_text())
    return f"{record['attack']['top1'] if metric == 'attack' else record[metric]:.1f}"
