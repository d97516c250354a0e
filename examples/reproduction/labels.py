"""Pictures of the paper's figures 5, 6, 7 and 8, for models with any weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tlfx.analysis.pairs import Pairs, mixed, photo_pairs
from tlfx.analysis.photos import SHIPPED, fitted, normalised, shipped_photo
from tlfx.analysis.pictures import draw_embeddings, draw_mixtures, draw_similarities
from tlfx.analysis.plotting import save
from tlfx.analysis.probe import Probe
from tlfx.zoo.models import load
from tlfx.zoo.weights import load_weights

__all__ = ["label_embeddings", "mixtures", "similarities"]

PATCH = 16
SEED = 55
"""One whose first pairs have boxes of a third to two thirds of the image."""


def label_embeddings(models: Sequence[str], weights: Sequence[Path], pretrained: bool, pairs: int, file: Path) -> None:
    """Draw a row for each pair and model: both images, the mixture, original and aligned label embedding."""
    rows = []
    for place, name in enumerate(models):
        probe, model, size = _probe(name, weights[place] if weights else None, pretrained)
        for pair in _pairs(pairs, size):
            readings, _ = probe(normalised(pair.mixed, model), pair.mask)
            rows.append((name, pair, readings[0], readings[-1]))
    save(draw_embeddings(rows), file)


def similarities(name: str, weights: Path | None, pretrained: bool, file: Path) -> None:
    """Draw the cosine similarity of the class token, or of a token of the mixture, to all tokens of both images."""
    probe, model, size = _probe(name, weights, pretrained)
    [pair] = _pairs(1, size)
    images = normalised(torch.cat((pair.mixed, pair.first, pair.second)), model)
    readings, _ = probe(images, pair.mask)
    save(draw_similarities(name, pair, readings[-1]), file)


def mixtures(size: int, seed: int, file: Path) -> None:
    """Draw the same two images mixed by CutMix, random and block-wise mixing."""
    first, second = (fitted(shipped_photo(name), (size, size)) for name in SHIPPED[:2])
    names = {"CutMix": "cutmix", "Random mixing": "patches", "Block-wise mixing": "blocks"}
    save(draw_mixtures({title: mixed(first, second, name, seed, PATCH) for title, name in names.items()}), file)


def _probe(name: str, weights: Path | None, pretrained: bool) -> tuple[Probe, torch.nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    model, example = load(name, None, [], None, "cpu", pretrained)
    if weights is not None:
        load_weights(model, weights)
    size: tuple[int, ...] = tuple(example.shape[1:])
    return Probe(model, size, attention=False), model, size


def _pairs(count: int, size: Sequence[int]) -> list[Pairs]:
    pairs = photo_pairs(count, size[-2:], SEED)
    return [pairs[place] for place in range(count)]
