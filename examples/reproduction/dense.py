"""Tables 3 and 4: segmentation and detection on backbones that were trained on ImageNet."""

from __future__ import annotations

from reproduction.real import MODELS, RealRuns, last, stem

__all__ = ["DETECTION", "SEGMENTATION", "TABLE3", "TABLE4", "detect", "segment"]

SEGMENTATION = {name: name for name in ("mIoU", "mIoU (MS)", "mAcc")}
DETECTION = {f"{ap}({kind})": f"{ap} {kind}" for kind in ("box", "mask") for ap in ("AP", "AP50", "AP75")}
"""Columns of Tables 3 and 4, and the names of these figures in summary.csv."""
TABLE3 = {
    "DeiT-S": ("58M", "1032G", "43.8", "45.1", "55.2"),
    "DeiT-S +TL-Align": ("58M", "1032G", "44.5", "45.7", "55.5"),
    "Swin-T": ("60M", "945G", "44.4", "45.8", "55.6"),
    "Swin-T +TL-Align": ("60M", "945G", "44.7", "46.5", "56.4"),
    "Swin-S": ("81M", "1038G", "47.6", "49.5", "58.8"),
    "Swin-S +TL-Align": ("81M", "1038G", "48.0", "49.7", "59.5"),
    "Swin-B": ("121M", "1188G", "48.1", "49.7", "59.1"),
    "Swin-B +TL-Align": ("121M", "1188G", "48.3", "50.1", "59.7"),
}
"""Parameters, FLOPs and figures as printed."""
TABLE4 = {
    "Swin-T": ("86M", "745G", "3x", "50.4", "69.2", "54.7", "43.7", "66.6", "47.3"),
    "Swin-T +TL-Align": ("86M", "745G", "3x", "50.5", "69.4", "54.9", "43.8", "66.6", "47.3"),
    "Swin-S": ("107M", "838G", "3x", "51.9", "70.7", "56.3", "45.0", "68.2", "48.8"),
    "Swin-S +TL-Align": ("107M", "838G", "3x", "52.2", "71.1", "56.7", "45.2", "68.4", "49.1"),
    "Swin-B": ("145M", "982G", "3x", "51.9", "70.5", "56.4", "45.0", "68.1", "48.9"),
    "Swin-B +TL-Align": ("145M", "982G", "3x", "52.3", "71.2", "56.9", "45.3", "68.7", "49.1"),
}
"""Parameters, FLOPs, schedule and figures as printed, of Cascade Mask R-CNN; `detect.py` trains Mask R-CNN."""
ONCE = ("--multi-scale", "--eval-steps", 160_000, "--checkpoint-steps", 4_000)
"""Evaluation at all scales takes twelve times as long as at one, so that it is done at the end only."""


def segment(runs: RealRuns) -> list[list[str]]:
    """Train UPerNet on the backbone of each row of Table 3: rows of new and of printed figures."""
    rows = []
    for row, printed in TABLE3.items():
        out = runs.folder / stem(row)
        runs.train("segment.py", out, *_backbone(row, runs), *ONCE)
        rows.append([row, *last(out, list(SEGMENTATION.values())), *printed])
    return rows


def detect(runs: RealRuns) -> list[list[str]]:
    """Train Mask R-CNN on the backbone of each row of Table 4: rows of new and of printed figures."""
    rows = []
    for row, printed in TABLE4.items():
        out = runs.folder / stem(row)
        runs.train("detect.py", out, *_backbone(row, runs))
        rows.append([row, *last(out, list(DETECTION.values())), *printed])
    return rows


def _backbone(row: str, runs: RealRuns) -> tuple[object, ...]:
    return "--backbone", MODELS[row.partition(" ")[0]], "--backbone-checkpoint", runs.file(row)
