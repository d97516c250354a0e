"""Paired statistics of a few runs: the difference of two methods whose runs share their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t  # type: ignore[import-untyped]

__all__ = ["Interval", "paired_difference"]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, which is infinite for fewer than two values."""

    mean: float
    low: float
    high: float


def paired_difference(method: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95) -> Interval:
    """Mean of method − baseline over their common seeds, with Student's t-interval of this level.

    Raises ValueError if they have no common seed.

    >>> paired_difference({0: 70.0, 1: 84.0, 2: 62.0}, {0: 69.0, 1: 81.0, 2: 60.0, 3: 90.0}).mean
    2.0
    """
    differences = [method[seed] - baseline[seed] for seed in sorted(method.keys() & baseline.keys())]
    if not differences:
        raise ValueError(f"no seed in common: {sorted(method)} and {sorted(baseline)}")
    mean, count = fmean(differences), len(differences)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(t.ppf((1 + level) / 2, count - 1)) * stdev(differences) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)
