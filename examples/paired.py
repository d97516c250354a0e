"""Paired statistics of a few runs: the difference of two methods whose runs share their seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import binomtest, t  # type: ignore[import-untyped]

__all__ = ["Interval", "SignTest", "paired_difference", "sign_test"]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, which is infinite for fewer than two values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SignTest:
    """How many seeds a method won and lost, and the two-sided p-value of the sign test, which leaves out ties."""

    won: int
    lost: int
    p: float


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


def sign_test(method: Mapping[int, float], baseline: Mapping[int, float]) -> SignTest:
    """Sign test of method against baseline over their common seeds; p is 1 if all of them are ties, or there are none.

    >>> sign_test({0: 70.0, 1: 84.0, 2: 62.0}, {0: 69.0, 1: 81.0, 2: 62.0})
    SignTest(won=2, lost=0, p=0.5)
    """
    common = method.keys() & baseline.keys()
    won, lost = (sum(sign * (method[seed] - baseline[seed]) > 0 for seed in common) for sign in (1, -1))
    return SignTest(won, lost, float(binomtest(won, won + lost).pvalue) if won + lost else 1.0)
