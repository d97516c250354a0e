"""The invariants on models of other libraries and of user code, and what cannot be aligned, by name.

``rules/README.md`` holds the figures of all: ``python tests/models/table.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import slow_except

import tlfx
from models.catalogue import CATALOGUE
from tlfx.analysis.invariants import measure, rectangles, target

TOLERANCE = 1e-5
README = Path(__file__).parents[2] / "rules" / "README.md"
ALIGNED = {name: entry for name, entry in CATALOGUE.items() if entry.error is None}
EVERY_RUN = {
    "torch: elu linear",
    "torch: grid_sample (spatial transformer)",
    "torch: max_unpool2d (SegNet)",
    "torchvision: stochastic depth by rows",
}
"""Models whose ways to mix tokens no other model of a default run has; all others are tested by ``make slow``."""
REFUSED = {name: entry for name, entry in CATALOGUE.items() if entry.error is not None}


@pytest.mark.parametrize("name", slow_except(EVERY_RUN, ALIGNED))
def test_invariants(name: str) -> None:
    entry = ALIGNED[name]
    figures = measure(entry.model(), entry.size)
    assert figures.worst_exact() <= entry.rounding, figures
    assert figures.worst_label() < TOLERANCE, figures


LARGE = ("torchvision: fasterrcnn_resnet50_fpn", "vit-pytorch: ATS-ViT, adaptive token sampling")


@pytest.mark.parametrize("name", slow_except(REFUSED.keys() - LARGE, REFUSED))
def test_refused_by_name(name: str) -> None:
    """The error names the model, the reason, the line and the remedy, and the model stays as it was."""
    entry = REFUSED[name]
    model = entry.model().eval()
    images = entry.images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    aligned = tlfx.align(model)
    assert entry.error is not None
    with pytest.raises(entry.error, match=entry.reason) as raised:
        aligned(images, target(rectangles(len(images), entry.size[-2:], seed=0)))
    for words in (tlfx.unalign(model).__class__.__name__, "source: ", "align the part of the model without it"):
        assert words in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_models_of_every_run_are_in_the_catalogue() -> None:
    assert set(ALIGNED) >= EVERY_RUN


def test_only_known_models_may_differ_by_rounding() -> None:
    assert {name for name, entry in CATALOGUE.items() if entry.rounding} == {
        "transformers: BEiT",
        "transformers: BEiT, shared bias",
    }


def test_the_table_has_every_model() -> None:
    section = README.read_text(encoding="utf-8").partition("## Models beyond")[2]
    rows = [line.split(" | ")[:3] for line in section.splitlines() if line.startswith("| ")]
    statuses = {f"{source}: {name.removeprefix('| ')}": status for name, source, status in rows[1:]}
    assert statuses == {name: entry.status for name, entry in CATALOGUE.items()}
