"""Figures of token fluctuation, against the same worked out by hand for a small vision transformer."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest
import torch
from rollout import initial, mixing_matrices
from twins.eq_13 import mixing_ratio
from twins.families import FAMILIES
from twins.recorder import outputs_of
from twins.vit import timm_maps

from tlfx.analysis.fluctuation import INPUT, OUTPUT, Figures, as_csv, by_layer, fluctuation, rmse
from tlfx.analysis.pairs import photo_pairs
from tlfx.analysis.photos import normalised

PAIRS = 3


@pytest.fixture(scope="module")
def measured() -> tuple[Any, list[Figures]]:
    """A model and its figures."""
    model = FAMILIES["vit"].model().eval()
    return model, fluctuation("small", model, (3, 32, 32), pairs=PAIRS, present=1, seed=5)


def test_every_layer_of_every_pair(measured: tuple[Any, list[Figures]]) -> None:
    layers = [INPUT, "blocks.0", "blocks.1", "blocks.2", OUTPUT]
    assert [(f.model, f.pair, f.depth, f.layer) for f in measured[1]] == [
        ("small", pair, depth, layer) for pair in range(PAIRS) for depth, layer in enumerate(layers)
    ]
    assert [f.presence is not None for f in measured[1]] == [True] * 5 + [False] * 10


def test_mixing_ratios_by_hand(measured: tuple[Any, list[Figures]]) -> None:
    model, fluctuations = measured
    pairs = photo_pairs(PAIRS, (32, 32), seed=5)
    images = [normalised(x, model) for x in (pairs.mixed, pairs.first, pairs.second)]
    start, maps = initial(model, pairs.mask), timm_maps(model, images[0])
    tokens = [outputs_of(model, x, model.blocks) for x in images]
    hard = (start[:, 1:] >= 0.5).double().mean(1)
    for depth, (matrix, weights) in enumerate(zip(mixing_matrices(model, images[0]), maps, strict=True), 1):
        labels = (matrix @ start[..., None])[..., 0]
        mixed, first, second = (t[model.blocks[depth - 1]].tolist() for t in tokens)
        similar = [mixing_ratio(m[0], one, other) for m, one, other in zip(mixed, first, second, strict=True)]
        attended = (weights[:, 0, 1:] * start[:, 1:]).sum(1) / weights[:, 0, 1:].sum(1)
        moved = (labels[:, 1:] - start[:, 1:]).square().mean(1).sqrt()
        expected = {
            "area": pairs.mask.mean((1, 2, 3)),
            "aligned": labels[:, 0],
            "transmix": attended,
            "fixed": hard,
            "similarity": torch.tensor(similar),
            "moved": moved,
        }
        for name, values in expected.items():
            figures = [getattr(f, name) for f in fluctuations if f.depth == depth]
            assert figures == pytest.approx(values.tolist(), abs=1e-5), name


def test_the_image_and_the_output(measured: tuple[Any, list[Figures]]) -> None:
    first, *_, last_block, output = measured[1][:5]
    assert (first.aligned, first.moved, first.similarity, first.transmix) == (first.area, 0.0, None, None)
    assert (first.presence.least, first.presence.most, first.presence.faded) == (1.0, 1.0, 0.0)
    assert output.aligned == pytest.approx(last_block.aligned, abs=1e-6)
    assert output.transmix == last_block.transmix
    assert (output.height, output.width, output.fixed, output.moved) == (1, 1, None, None)


def test_presence_by_hand(measured: tuple[Any, list[Figures]]) -> None:
    model, fluctuations = measured
    image = normalised(photo_pairs(1, (32, 32), seed=5).mixed, model)
    start = torch.cat((torch.full((1, 16), 1 / 16), torch.eye(16))).double()
    for depth, matrix in enumerate(mixing_matrices(model, image), 1):
        present = ((matrix[0] @ start).mean(0) * 16).sort().values
        spread = fluctuations[depth].presence
        assert spread is not None
        assert (spread.least, spread.most) == pytest.approx((float(present[0]), float(present[-1])), abs=1e-5)
        assert spread.median == pytest.approx(float(present[7:9].mean()), abs=1e-5)
        assert spread.lower == pytest.approx(float(present[3] + 0.75 * (present[4] - present[3])), abs=1e-5)
        assert spread.faded == pytest.approx(float((present < 0.1).double().mean()), abs=1e-6)


def test_csv_holds_every_figure(measured: tuple[Any, list[Figures]]) -> None:
    fluctuations = measured[1]
    rows = list(csv.DictReader(io.StringIO(as_csv(fluctuations))))
    assert len(rows) == len(fluctuations)
    for row, figures in zip(rows, fluctuations, strict=True):
        for name in ("model", "layer"):
            assert row[name] == getattr(figures, name)
        for name in ("pair", "depth", "height", "width", "area", "aligned"):
            assert float(row[name]) == getattr(figures, name)
        for name in ("transmix", "fixed", "similarity", "moved"):
            assert (float(row[name]) if row[name] else None) == getattr(figures, name)
        for name in ("least", "lower", "median", "upper", "most", "faded"):
            assert (float(row[name]) if row[name] else None) == getattr(figures.presence, name, None)


def test_rmse_over_pairs(measured: tuple[Any, list[Figures]]) -> None:
    output = by_layer(measured[1])[-1]
    assert [f.layer for f in output] == [OUTPUT] * PAIRS
    expected = math.sqrt(sum((f.area - f.aligned) ** 2 for f in output) / PAIRS)
    assert rmse(output, "area") == pytest.approx(expected)
    assert rmse(output, "fixed") is None
    assert expected > 1e-3
