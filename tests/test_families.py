"""The invariants on the smallest model of every timm family; ``tests/data/families.csv`` holds the measured figures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch

import tlfx
from tlfx.analysis.invariants import measure

TABLE = Path(__file__).parent / "data" / "families.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))
REFUSED = ["csatv2"]
MODELS = [row["model"] for row in ROWS if row["model"] not in REFUSED]
SPREAD = {row["model"] for row in ROWS if row["default"] == "yes"}
TOLERANCE = 1e-6


@pytest.mark.parametrize("name", [pytest.param(m, marks=[] if m in SPREAD else pytest.mark.slow) for m in MODELS])
def test_invariants(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    figures = measure(model, model.default_cfg["input_size"])
    assert figures.worst_exact() == 0.0, figures
    assert figures.worst_label() < TOLERANCE, figures


def test_table_has_all_families() -> None:
    assert len(ROWS) == 98
    assert len(SPREAD) >= 30
    assert {row["family"] for row in ROWS} <= set(timm.list_modules())


def test_samples_that_mix_are_refused() -> None:
    """csatv2 multiplies (batch, tokens) by (tokens, batch): its attention runs over the batch."""
    assert [row["model"] for row in ROWS if row["status"].startswith("ProvenanceError")] == REFUSED
    with pytest.raises(tlfx.ProvenanceError, match="sums over the batch"):
        tlfx.align(timm.create_model("csatv2"), example=torch.zeros(2, 3, 512, 512))
