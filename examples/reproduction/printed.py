"""Tables of the paper: rows with the figures that it prints, and the run of each row on digits and on ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TABLES", "Printed", "Row"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: its first columns, as printed.
        paper: figures as printed, for the columns ``figures`` of its table.
        digits: architecture and method of `compare.py`, or empty if the small version has no such run.
        recipe: a file of examples/recipes and further flags of `train_imagenet.py`; empty for published weights.
    """

    cells: tuple[str, ...]
    paper: tuple[str, ...]
    digits: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class Printed:
    """A table: its title, the heads of the first columns and of the figures, and its rows."""

    title: str
    heads: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[Row, ...]


def _pair(
    model: str, size: tuple[str, str], plain: tuple[str, str], aligned: tuple[str, str], digits: str, recipe: str
) -> tuple[Row, Row]:
    """A model of Table 1 without and with TL-Align: parameters and FLOPs, and top-1 and top-5 accuracy of each."""
    methods = [f"{digits} {method}" if digits else "" for method in ("plain", "aligned")]
    finetuned = "finetune" in recipe  # the plain rows of base models are published weights
    flags = ("" if finetuned else f"{recipe} --no-align", recipe)
    return (
        Row((model,), (*size, *plain), methods[0], flags[0]),
        Row(("+TL-Align",), (*size, *aligned), methods[1], flags[1]),
    )


TABLE1 = Printed(
    "Results on ImageNet classification task",
    ("Model",),
    ("Params", "FLOPs", "Top-1(%)", "Top-5(%)"),
    (
        *_pair("DeiT-T", ("5.7M", "1.6G"), ("72.2", "91.3"), ("73.2", "91.7"), "", "deit_tiny"),
        *_pair("PVT-T", ("13.2M", "1.9G"), ("75.1", "92.4"), ("75.5", "93.0"), "", "pvt_tiny"),
        *_pair("DeiT-S", ("22M", "4.6G"), ("79.8", "95.0"), ("80.6", "95.0"), "vit", "deit_small"),
        *_pair("PVT-S", ("24.5M", "3.8G"), ("79.8", "95.0"), ("80.4", "95.5"), "", "pvt_small"),
        *_pair("Swin-T", ("29M", "4.5G"), ("81.2", "95.5"), ("81.4", "95.7"), "swin", "swin_tiny"),
        *_pair("Swin-S", ("50M", "8.8G"), ("83.0", "96.3"), ("83.4", "96.5"), "", "swin_small"),
        *_pair("DeiT-B", ("86M", "17.5G"), ("81.8", "95.5"), ("82.3", "95.8"), "", "deit_base_finetune"),
        *_pair("Swin-B", ("88M", "15.4G"), ("83.5", "96.4"), ("83.7", "96.5"), "", "swin_base_finetune"),
    ),
)
TABLE2 = Printed(
    "Comparison with other training strategies on ImageNet",
    ("Method",),
    ("Params", "Speed (image/s)", "Acc.(%)"),
    (
        Row(("Vanilla",), ("22M", "322", "76.4"), "vit none/plain", "table9_deit_small_1"),
        Row(("CutMix",), ("22M", "322", "79.8"), "vit plain", "table9_deit_small_4"),
        Row(("Puzzle-Mix",), ("22M", "139", "79.8"), "vit puzzlemix/plain", "deit_small --method puzzlemix"),
        Row(("SaliencyMix",), ("22M", "314", "79.2"), "vit saliencymix/plain", "deit_small --method saliencymix"),
        Row(("Attentive-CutMix",), ("46M", "239", "77.5"), "vit attentive/plain", "deit_small --method attentive"),
        Row(("TransMix",), ("22M", "322", "80.1"), "vit transmix", "table9_deit_small_4_transmix"),
        Row(("CutMix + TL-Align",), ("22M", "311", "80.6"), "vit aligned", "deit_small"),
    ),
)
TABLE7 = Printed(
    "Ablation of applying TL-Align to different data mixing strategies for DeiT-S training",
    ("Mixing", "TL-Align"),
    ("Top-1(%)",),
    (
        Row(("none", "×"), ("76.4",), "vit none/plain", "table9_deit_small_1"),
        Row(("CutMix", "×"), ("79.8",), "vit plain", "table9_deit_small_4"),
        Row(("CutMix", "✓"), ("80.6",), "vit aligned", "deit_small"),
        Row(("MixUp, CutMix", "×"), ("79.8",), "vit switch/plain", "table9_deit_small_2"),
        Row(("MixUp, CutMix", "✓"), ("80.2",), "vit switch/aligned", "table7_mixup_cutmix"),
        Row(("Random", "×"), ("79.7",), "vit patches/plain", "table7_random --no-align"),
        Row(("Random", "✓"), ("80.2",), "vit patches/aligned", "table7_random"),
        Row(("Block-wise", "×"), ("80.0",), "vit blocks/plain", "table7_blockwise --no-align"),
        Row(("Block-wise", "✓"), ("80.3",), "vit blocks/aligned", "table7_blockwise"),
    ),
)
DISABLED = "Normalization Disabled"
TABLE8 = Printed(
    "Ablation of different TL-Align operations",
    ("Alignment", "on digits (3 blocks)"),
    ("Top-1 Acc.(%)",),
    (
        Row(("None (DeiT-S baseline)", ""), ("79.8",), "vit plain", "table9_deit_small_4"),
        Row(("TL-Align-S (Layer 12)", "layer 3"), ("80.1",), "vit aligned:layers=-1", "table8_layer_12"),
        Row(("TL-Align-S (Layer 2,4,6,8)", "layer 2"), ("80.2",), "vit aligned:layers=1", "table8_layers_2_4_6_8"),
        Row((DISABLED, "labels × 2^6"), ("80.3",), "vit aligned:scale=64", "table8_unnormalised"),
        Row((DISABLED, "residual=skip"), ("80.3",), "vit aligned:residual=skip", "table8_skip"),
        Row(("Default (TL-Align)", ""), ("80.6",), "vit aligned", "deit_small"),
    ),
)
BASIC, ADVANCED = ("300", "5", "0.0005", "0.05", "no"), ("310", "20", "0.001", "0.03", "0.99996")
"""Epochs, warm-up, learning rate, weight decay and moving average of the recipes in Table 9."""
TABLE9 = Printed(
    "Comparisons of different training recipes for the DeiT-S model",
    ("Method", "Epochs", "Warmup", "LR", "WD", "EMA", "MixUp", "CutMix", "Switch", "Erasing"),
    ("Top-1 Acc.(%)",),
    (
        Row(("DeiT-S 1", *BASIC, "0.0", "0.0", "-", "yes"), ("76.4",), "vit none/plain", "table9_deit_small_1"),
        Row(("DeiT-S 2", *BASIC, "0.8", "1.0", "0.5", "yes"), ("79.8",), "vit switch/plain", "table9_deit_small_2"),
        Row(("DeiT-S 3", *ADVANCED, "0.8", "1.0", "0.8", "no"), ("80.3",), "", "table9_deit_small_3"),
        Row(("+TransMix", *ADVANCED, "0.8", "1.0", "0.8", "no"), ("80.7",), "", "table9_deit_small_3_transmix"),
        Row(("DeiT-S 4", *BASIC, "0.0", "1.0", "-", "yes"), ("79.8",), "vit plain", "table9_deit_small_4"),
        Row(("+TransMix", *BASIC, "0.0", "1.0", "-", "yes"), ("80.1",), "vit transmix", "table9_deit_small_4_transmix"),
        Row(("+TL-Align", *BASIC, "0.0", "1.0", "-", "yes"), ("80.6",), "vit aligned", "deit_small"),
    ),
)
TABLES = {1: TABLE1, 2: TABLE2, 7: TABLE7, 8: TABLE8, 9: TABLE9}
"""The tables that are runs of training, by number."""
