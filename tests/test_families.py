"""The invariants on one small model of every kind, and on the smallest model of every timm family.

A sweep of more than an hour measures the families, and ``tests/data/families.csv`` holds its figures::

    tlfx zoo --smallest --check -o tests/data/families.csv

but for three models whose own image size takes more than 20 GB or ten minutes in training::

    tlfx zoo --fresh --check --input-size 192 -o tests/data/families.csv gemma4_vit_167m qwen3_vit_88m
    tlfx zoo --fresh --check --input-size 210 -o tests/data/families.csv deepseek_vit_412m

``tests/data/zoo.csv`` has the models of all names of timm, analysed without their weights::

    tlfx zoo '*' -o tests/data/zoo.csv
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from helpers import slow_except
from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from torch import nn

from tlfx.analysis.invariants import measure
from tlfx.zoo.table import read

ROWS = read(Path(__file__).parent / "data" / "families.csv")
REFUSED = ["csatv2"]
SIDE = 64
mixer = partial(MlpMixer, img_size=SIDE, patch_size=16, num_blocks=2, embed_dim=64)
KINDS: dict[str, Callable[[], nn.Module]] = {
    "ViT": partial(timm.create_model, "vit_tiny_patch16_224", img_size=SIDE, depth=2),
    "Swin": partial(
        timm.create_model, "swin_tiny_patch4_window7_224", img_size=SIDE, window_size=4, depths=(2,), num_heads=(3,)
    ),
    "PVT": partial(timm.create_model, "pvt_v2_b0", depths=(1, 1, 1, 1)),
    "Mixer": mixer,
    "gMLP": partial(mixer, mlp_ratio=6, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp),
    "ConvNeXt": partial(timm.create_model, "test_convnext", depths=(1, 1, 1, 1)),
    "ResNet": partial(timm.create_model, "test_resnet"),
    "EfficientNet": partial(timm.create_model, "test_efficientnet"),
    "NFNet": partial(timm.create_model, "test_nfnet"),
    "MambaOut": partial(timm.create_model, "test_mambaout", depths=(1, 1, 1, 1)),
}
"""A model of each kind, for images of 64 × 64 pixels."""
EVERY_RUN = ("ViT", "Mixer", "ResNet")
"""The others are tested by ``make slow``; tests/test_twins.py has Swin, PVT and ConvNeXt too."""
TOLERANCE = 1e-6


def assert_invariants(model: nn.Module, size: tuple[int, ...]) -> None:
    """Equal where models must be equal, and within rounding where labels are."""
    figures = measure(model, size)
    assert figures.worst_exact() == 0.0, figures
    assert figures.worst_label() < TOLERANCE, figures


@pytest.mark.parametrize("name", slow_except(EVERY_RUN, KINDS))
def test_invariants_of_every_kind(name: str) -> None:
    torch.manual_seed(0)
    assert_invariants(KINDS[name](), (3, SIDE, SIDE))


@pytest.mark.parametrize("name", [name for name in ROWS if name not in REFUSED])
def test_the_table_has_the_invariants_of_every_family(name: str) -> None:
    """Those of the smallest model, on images of its own size, as the sweep measured them."""
    exact = ("check_logits", "check_gradients", "check_buffers", "check_independence")
    assert [ROWS[name][column] for column in exact] == ["0.0"] * len(exact)
    laws = ("check_constant", "check_bounds", "check_swap", "check_linearity", "check_permutation")
    assert max(float(ROWS[name][column] or 0) for column in laws) < TOLERANCE
    assert [ROWS[name][column] for column in ("check_extra", "check_missing")] == ["0.0", "0.0"]


def test_the_table_has_every_family() -> None:
    assert [row["family"] for row in sorted(ROWS.values(), key=lambda row: row["family"])] == timm.list_modules()


def test_every_name_of_timm_was_analysed() -> None:
    """Within the limits of time and memory: each is captured, or refused with a reason."""
    rows = read(Path(__file__).parent / "data" / "zoo.csv")
    assert set(rows) == set(timm.list_models())
    assert {name: row["status"] for name, row in rows.items() if row["status"] != "ok"} == dict.fromkeys(
        ("csatv2", "csatv2_21m"), "failed"
    )
    assert all(row["reason"].startswith("ProvenanceError") for row in rows.values() if row["status"] != "ok")


def test_the_table_names_what_is_refused() -> None:
    """csatv2 multiplies (batch, tokens) by (tokens, batch): its attention runs over the batch."""
    assert {name: row["status"] for name, row in ROWS.items() if row["status"] != "ok"} == {"csatv2": "failed"}
    assert ROWS["csatv2"]["reason"].startswith("ProvenanceError: this contraction sums over the batch")
