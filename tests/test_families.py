"""The invariants on the smallest model of every timm family.

``tests/data/families.csv`` holds the figures of all::

    tlfx zoo --smallest --check -o tests/data/families.csv

but for three models whose own image size takes more than 20 GB or ten minutes in training::

    tlfx zoo --fresh --check --input-size 192 -o tests/data/families.csv gemma4_vit_167m qwen3_vit_88m
    tlfx zoo --fresh --check --input-size 210 -o tests/data/families.csv deepseek_vit_412m
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import tlfx
from tlfx.analysis.invariants import measure
from tlfx.zoo.models import load, parse_size
from tlfx.zoo.table import read

ROWS = read(Path(__file__).parent / "data" / "families.csv")
REFUSED = ["csatv2"]
SPREAD = (
    "test_byobnet", "test_convnext", "cs3darknet_focus_s", "deit_tiny_patch16_224", "test_efficientnet",
    "efficientvit_b0", "fasternet_t0", "hgnetv2_b0", "inception_next_atto", "levit_128s", "test_mambaout",
    "test_coatnet", "poolformerv2_s12", "gmlp_ti16_224", "mobilenetv3_small_050", "mobilevit_xxs", "test_nfnet",
    "pit_ti_224", "pvt_v2_b0", "regnetx_002", "test_resnet", "resnetv2_18", "shvit_s1", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
)  # fmt: skip
"""Families of every kind, tried at every run of the tests; ``make slow`` tries the others."""
TOLERANCE = 1e-6


@pytest.mark.parametrize("name", [pytest.param(m, marks=[] if m in SPREAD else pytest.mark.slow) for m in ROWS])
def test_invariants(name: str) -> None:
    torch.manual_seed(0)
    size = parse_size(ROWS[name]["image"])
    model, _ = load(name, input_size=size)
    if name in REFUSED:
        with pytest.raises(tlfx.ProvenanceError, match="sums over the batch"):
            measure(model, size)
        return
    figures = measure(model, size)
    assert figures.worst_exact() == 0.0, figures
    assert figures.worst_label() < TOLERANCE, figures


def test_the_table_has_every_family() -> None:
    assert [row["family"] for row in sorted(ROWS.values(), key=lambda row: row["family"])] == timm.list_modules()
    assert set(SPREAD) <= set(ROWS)
    assert len(SPREAD) >= 30


def test_the_table_names_what_is_refused() -> None:
    """csatv2 multiplies (batch, tokens) by (tokens, batch): its attention runs over the batch."""
    assert {name: row["status"] for name, row in ROWS.items() if row["status"] != "ok"} == {"csatv2": "failed"}
    assert ROWS["csatv2"]["reason"].startswith("ProvenanceError: this contraction sums over the batch")
