"""Token fluctuation: presence of input tokens over depth and mixing ratios by several methods, by layer (figure 4)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlfx.analysis.pairs import Pairs, photo_pairs
from tlfx.analysis.photos import normalised
from tlfx.analysis.presence_over_depth import faded, input_cells, presence_over_depth
from tlfx.analysis.probe import Probe, Reading
from tlfx.analysis.similarity import similarity_share

__all__ = ["INPUT", "METHODS", "OUTPUT", "Figures", "Spread", "as_csv", "by_layer", "fluctuation", "rmse"]

INPUT, OUTPUT = "(image)", "(output)"
"""Names of the first and the last layer, which are not modules."""
METHODS = {
    "area": "area (CutMix)",
    "transmix": "TransMix",
    "fixed": "fixed tokens",
    "similarity": "similarity (eq. 13)",
    "aligned": "TL-Align",
}
"""The fields of :class:`Figures` that hold a mixing ratio, with their names in plots."""


@dataclass(frozen=True)
class Spread:
    """Distribution of the presence of input tokens: five quantiles, and the fraction of tokens below 0.1."""

    least: float
    lower: float
    median: float
    upper: float
    most: float
    faded: float

    @classmethod
    def of(cls, present: Tensor) -> Spread:
        """The distribution of the presence of each input token, (tokens,).

        >>> Spread.of(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]))
        Spread(least=0.0, lower=0.5, median=1.0, upper=1.5, most=2.0, faded=0.2)
        """
        places = torch.linspace(0, 1, 5, dtype=torch.float64)
        least, lower, median, upper, most = present.double().quantile(places).tolist()
        return cls(least, lower, median, upper, most, round(faded(present), 6))


@dataclass(frozen=True)
class Figures:
    """Measurements in one layer for one mixed pair. All λ are shares of the first image.

    Attributes:
        model, pair, depth, layer: name, number of the pair, number of the layer (0 is the image), and its path.
        height, width: size of the token grid; of the grid of input tokens for the image, 1 for the output.
        area: λ of plain CutMix, the same in every layer.
        aligned: λ of the tokens that the classifier would read in this layer; at the output, the target of TL-Align.
        transmix: λ of TransMix if this were the last layer: the initial labels of the patches, weighted by the
            attention of the class token; in the last layer, the target of TransMix. None without class token.
        fixed: λ of tokens that keep one label each, as in TokenLabeling: the fraction of tokens of this layer whose
            region belongs mostly to the first image. None for the output.
        similarity: λ by eq. 13 of the tokens that the classifier would read in this layer, in the mean over them: for a
            model with a class token, that of the class token, as in figure 4. None for image and output.
        moved: root mean square over tokens of the difference between the aligned label of a token and the label of its
            region of the image; None for the output.
        presence: presence of the input tokens over depth (:mod:`tlfx.analysis.presence_over_depth`); None if not
            measured.
    """

    model: str
    pair: int
    depth: int
    layer: str
    height: int
    width: int
    area: float
    aligned: float
    transmix: float | None = None
    fixed: float | None = None
    similarity: float | None = None
    moved: float | None = None
    presence: Spread | None = None


def fluctuation(
    name: str, model: nn.Module, size: Sequence[int], pairs: int = 16, present: int = 2, seed: int = 0
) -> list[Figures]:
    """Measure every block of a model for CutMix pairs of photos, pair by pair, from the image to the output.

    Args:
        name: name of the model in the figures.
        model: takes images of ``size`` (3, height, width), normalised by its configuration; put in evaluation mode.
        pairs: number of pairs to mix, at least 1.
        present: number of pairs with presence, which takes one pass for every 512 input tokens.
        seed: seed of pairs and mixing.

    Raises InputError, CaptureError and UnknownOperatorError as :class:`tlfx.analysis.probe.Probe` does.
    """
    probe = Probe(model, size)
    mixtures = photo_pairs(pairs, size[-2:], seed)
    return [
        figures
        for place in range(pairs)
        for figures in _of_pair(partial(Figures, name, place), probe, model, mixtures[place], place < present)
    ]


def _of_pair(
    row: Callable[..., Figures], probe: Probe, model: nn.Module, pair: Pairs, with_presence: bool
) -> Iterator[Figures]:
    """Figures of one pair, with its three images in one batch."""
    images = normalised(torch.cat((pair.mixed, pair.first, pair.second)), model)
    readings, arrival = probe(images, pair.mask)
    spreads = [Spread.of(p) for p in presence_over_depth(probe, images[0])] if with_presence else []
    present = dict(enumerate(spreads, 1))
    area, cells = float(pair.area[0]), input_cells(probe)
    everywhere = Spread.of(torch.ones(1)) if with_presence else None
    yield row(0, INPUT, *cells, area, area, fixed=_fixed(pair.mask, cells), moved=0.0, presence=everywhere)
    for depth, reading in enumerate(readings, 1):
        own = _of_layer(reading, pair.mask)
        yield row(
            depth,
            reading.layer.path,
            *reading.layer.size,
            area,
            **own,
            transmix=_first(reading.class_attention),
            presence=present.get(depth),
        )
    depth = len(readings) + 1
    yield row(
        depth,
        OUTPUT,
        1,
        1,
        area,
        float(arrival.label[0, 0]),
        transmix=_first(arrival.class_attention),
        presence=present.get(depth),
    )


def _first(labels: Tensor | None) -> float | None:
    """The label of the mixed image, the first of the batch."""
    return None if labels is None else float(labels[0, 0])


def _of_layer(reading: Reading, mask: Tensor) -> dict[str, float]:
    """λ in one layer; the batch holds the mixed image, then the two images that it was made of."""
    initial = F.adaptive_avg_pool2d(mask, reading.layer.size)[0, 0]
    return {
        "aligned": float(reading.share[0, 0]),
        "fixed": _fixed(mask, reading.layer.size),
        "similarity": float(similarity_share(reading.read_tokens[0], *reading.tokens[1:]).mean()),
        "moved": float((reading.map[0, :, :, 0] - initial).square().mean().sqrt()),
    }


def _fixed(mask: Tensor, size: tuple[int, int]) -> float:
    return float((F.adaptive_avg_pool2d(mask, size) >= 0.5).float().mean())


def by_layer(figures: Sequence[Figures]) -> list[list[Figures]]:
    """The figures of one model, grouped by layer in order of depth."""
    depths = sorted({f.depth for f in figures})
    return [[f for f in figures if f.depth == depth] for depth in depths]


def rmse(figures: Sequence[Figures], one: str, other: str = "aligned") -> float | None:
    """Root mean square difference of two λ, such as ``"area"`` and ``"aligned"``; None if one of them is unknown.

    >>> rows = [Figures("model", 0, 0, "", 1, 1, area=a, aligned=0.5) for a in (0.2, 0.9)]
    >>> round(rmse(rows, "area"), 4), rmse(rows, "transmix")
    (0.3536, None)
    """
    pairs: list[tuple[float | None, float | None]] = [(getattr(f, one), getattr(f, other)) for f in figures]
    squares = [(a - b) ** 2 for a, b in pairs if a is not None and b is not None]
    return fmean(squares) ** 0.5 if squares and len(squares) == len(pairs) else None


def as_csv(figures: Sequence[Figures]) -> str:
    """CSV text with a header and a line for each layer and pair; all digits, unknown values are empty.

    >>> print(as_csv([Figures("model", 0, 1, "blocks.0", 7, 7, 0.5, 0.25)]))
    model,pair,depth,layer,height,width,area,aligned,transmix,fixed,similarity,moved,least,lower,median,upper,most,faded
    model,0,1,blocks.0,7,7,0.5,0.25,,,,,,,,,,
    <BLANKLINE>
    """
    own = [f.name for f in fields(Figures) if f.name != "presence"]
    spread = [f.name for f in fields(Spread)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*own, *spread])
    for one in figures:
        writer.writerow([getattr(one, n) for n in own] + [getattr(one.presence, n, None) for n in spread])
    return text.getvalue()
