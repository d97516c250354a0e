"""How well one share of the first image tells another, over many mixed pairs: correlation, error and calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BINS", "Agreement", "agreement"]

BINS = 10
"""Bins of the calibration error, equally wide in [0, 1]."""
CONSTANT = 1e-6
"""Shares that spread less than this (standard deviation) differ by rounding only: nothing correlates with them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How well a share λ tells a reference share ρ, both of the first image in the same mixed pairs.

    Attributes:
        pairs: how many pairs count, those in which the reference is defined.
        correlation: Pearson's, of λ and ρ, in [-1, 1].
        partial: partial correlation of λ and ρ given the area share: Pearson's of what a regression on the area leaves
            of each, in [-1, 1]. Where the sizes of the parts vary, any λ that follows them correlates with ρ; this is
            whether what λ tells beyond the area is right.
        rmse: root mean square of λ − ρ, in [0, 1].
        slope, intercept: of the least-squares line ρ ≈ intercept + slope·λ, 1 and 0 for a calibrated λ.
        calibration_error: expected calibration error in [0, 1]: pairs sorted into 10 equal bins of λ, the mean over
            pairs of |mean λ − mean ρ| in the bin of each.

    NaN stands for what is undefined: correlations and line of shares that are all the same, all but ``pairs`` without
    any pair.
    """

    pairs: int
    correlation: float
    partial: float
    rmse: float
    slope: float
    intercept: float
    calibration_error: float


def agreement(share: Tensor, reference: Tensor, area: Tensor) -> Agreement:
    """Agreement of a share with a reference, both floating (pairs,) in [0, 1] with the area share of each pair.

    Pairs whose reference is NaN are left out.

    >>> import torch
    >>> half = agreement(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.25, 0.5]), torch.tensor([0.1, 0.5, 0.9]))
    >>> [round(x, 4) for x in (half.correlation, half.slope, half.rmse, half.calibration_error)]
    [1.0, 0.5, 0.3227, 0.25]
    """
    known = ~reference.isnan()
    x, y, given = (t[known].double().numpy() for t in (share, reference, area))
    if not len(x):
        return Agreement(0, *[math.nan] * 6)
    slope, intercept = _line(x, y)
    return Agreement(
        pairs=len(x),
        correlation=_correlation(x, y),
        partial=_correlation(_left_by(given, x), _left_by(given, y)),
        rmse=float(np.sqrt(np.mean((x - y) ** 2))),
        slope=slope,
        intercept=intercept,
        calibration_error=_calibration_error(x, y),
    )


def _correlation(x: Floats, y: Floats) -> float:
    return math.nan if min(x.std(), y.std()) < CONSTANT else float(np.corrcoef(x, y)[0, 1])


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    if x.std() < CONSTANT:
        return math.nan, math.nan
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def _left_by(given: Floats, x: Floats) -> Floats:
    """What a least-squares line over ``given`` leaves of ``x``; all of it where ``given`` is constant."""
    slope, intercept = _line(given, x)
    return x if math.isnan(slope) else x - np.float64(intercept) - np.float64(slope) * given


def _calibration_error(x: Floats, y: Floats) -> float:
    place = np.clip((x * BINS).astype(int), 0, BINS - 1)
    sums = np.bincount(place, weights=x - y, minlength=BINS)  # |mean λ − mean ρ| times the pairs of a bin
    return float(np.abs(sums).sum() / len(x))
