"""Agreement of a label share with a reference share over many mixed pairs: correlation, error and calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BINS", "Agreement", "agreement"]

BINS = 10
"""Number of bins of the calibration error, of equal width in [0, 1]."""
CONSTANT = 1e-6
"""Shares with a smaller standard deviation differ only by rounding; their correlation is undefined."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Agreement of a share λ with a reference share ρ, both of the first image in the same mixed pairs.

    Attributes:
        pairs: number of pairs with a defined reference; other pairs are ignored.
        correlation: Pearson correlation of λ and ρ, in [-1, 1].
        partial: partial correlation of λ and ρ given the area share, in [-1, 1]: the Pearson correlation of the
            residuals of both after a linear regression on the area. If areas vary, every λ that follows the area
            correlates with ρ; the partial correlation measures the information in λ beyond the area.
        rmse: root mean square of λ − ρ, in [0, 1].
        slope, intercept: parameters of the least-squares line ρ ≈ intercept + slope·λ; 1 and 0 for a calibrated λ.
        calibration_error: expected calibration error in [0, 1]: the mean over pairs of |mean λ − mean ρ| in the bin of
            the pair, with 10 bins of λ of equal width.

    Undefined values are NaN: correlations and line if all shares are equal, and everything but ``pairs`` if there are
    no pairs.
    """

    pairs: int
    correlation: float
    partial: float
    rmse: float
    slope: float
    intercept: float
    calibration_error: float


def agreement(share: Tensor, reference: Tensor, area: Tensor) -> Agreement:
    """Agreement of a share with a reference, given the area share; all floating (pairs,) in [0, 1].

    Pairs whose reference is NaN are ignored.

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
    """Residuals of ``x`` after a linear regression on ``given``; ``x`` itself if ``given`` is constant."""
    slope, intercept = _line(given, x)
    return x if math.isnan(slope) else x - np.float64(intercept) - np.float64(slope) * given


def _calibration_error(x: Floats, y: Floats) -> float:
    place = np.clip((x * BINS).astype(int), 0, BINS - 1)
    sums = np.bincount(
        place, weights=x - y, minlength=BINS
    )  # its absolute value is |mean λ − mean ρ| times the number of pairs in the bin
    return float(np.abs(sums).sum() / len(x))
