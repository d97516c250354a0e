"""The invariants on one small model of every kind, and on the smallest model of every timm family.

``tests/data/families.csv`` holds the figures of all::

    tlfx zoo --smallest --check -o tests/data/families.csv

but for three models whose own image size takes more than 20 GB or ten minutes in training::

    tlfx zoo --fresh --check --input-size 192 -o tests/data/families.csv gemma4_vit_167m qwen3_vit_88m
    tlfx zoo --fresh --check --input-size 210 -o tests/data/families.csv deepseek_vit_412m
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tlfx
from tlfx.analysis.invariants import measure
from tlfx.zoo.models import load, parse_size
from tlfx.zoo.table import read

ROWS = read(Path(__file__).parent / "data" / "families.csv")
REFUSED = ["csatv2"]
SIDE = 64
KINDS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": SIDE, "depth": 2},
    "test_vit": {"img_size": SIDE},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "window_size": 4, "depths": (2, 2), "num_heads": (3, 6)},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "mixer_s32_224": {"img_size": SIDE, "num_blocks": 2},
    "gmlp_ti16_224": {"img_size": SIDE, "num_blocks": 2},
    "test_convnext": {},
    "test_resnet": {},
    "test_efficientnet": {},
    "test_nfnet": {},
    "mobilevit_xxs": {},
    "poolformerv2_s12": {"layers": (1, 1, 1, 1)},
    "test_mambaout": {},
}
"""A model of each kind and its arguments, on images of 64 × 64 pixels: quick enough for every run of the tests."""
TOLERANCE = 1e-6


def assert_invariants(model: torch.nn.Module, size: tuple[int, ...]) -> None:
    """Equal where models must be equal, and within rounding where labels are."""
    figures = measure(model, size)
    assert figures.worst_exact() == 0.0, figures
    assert figures.worst_label() < TOLERANCE, figures


@pytest.mark.parametrize("name", KINDS)
def test_invariants_of_every_kind(name: str) -> None:
    torch.manual_seed(0)
    assert_invariants(timm.create_model(name, **KINDS[name]), (3, SIDE, SIDE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_invariants_of_every_family(name: str) -> None:
    """The smallest model, on images of its own size."""
    torch.manual_seed(0)
    size = parse_size(ROWS[name]["image"])
    model, _ = load(name, input_size=size)
    if name in REFUSED:
        with pytest.raises(tlfx.ProvenanceError, match="sums over the batch"):
            measure(model, size)
        return
    assert_invariants(model, size)


def test_the_table_has_every_family() -> None:
    assert [row["family"] for row in sorted(ROWS.values(), key=lambda row: row["family"])] == timm.list_modules()


def test_the_table_names_what_is_refused() -> None:
    """csatv2 multiplies (batch, tokens) by (tokens, batch): its attention runs over the batch."""
    assert {name: row["status"] for name, row in ROWS.items() if row["status"] != "ok"} == {"csatv2": "failed"}
    assert ROWS["csatv2"]["reason"].startswith("ProvenanceError: this contraction sums over the batch")
