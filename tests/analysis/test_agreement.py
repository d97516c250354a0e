"""Agreement of two shares against scipy, and against slow sums."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from tlfx.analysis import Agreement
from tlfx.analysis.agreement import agreement


def shares(seed: int, count: int) -> torch.Tensor:
    """Share, reference and area of some pairs, which depend on each other."""
    draw = np.random.default_rng(seed)
    area = draw.uniform(0, 1, count)
    share = np.clip(area + draw.normal(0, 0.2, count), 0, 1)
    reference = np.clip(0.2 + 0.6 * share + draw.normal(0, 0.1, count), 0, 1)
    return torch.from_numpy(np.stack((share, reference, area)))


def binned_error(x: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error, bin by bin."""
    total = 0.0
    for number in range(10):
        last = number == 9
        inside = [i for i, v in enumerate(x) if number / 10 <= v and (v < (number + 1) / 10 or last)]
        if inside:
            total += len(inside) * abs(np.mean(x[inside]) - np.mean(y[inside]))
    return total / len(x)


@given(st.integers(0, 2**31 - 1), st.integers(4, 60))
def test_against_scipy(seed: int, count: int) -> None:
    share, reference, area = shares(seed, count)
    computed = agreement(share, reference, area)
    x, y, z = share.numpy(), reference.numpy(), area.numpy()
    line = stats.linregress(x, y)
    xy, xz, yz = (stats.pearsonr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = Agreement(
        pairs=count,
        correlation=xy,
        partial=(xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)),
        rmse=math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / count),
        slope=line.slope,
        intercept=line.intercept,
        calibration_error=binned_error(x, y),
    )
    assert astuple(computed) == pytest.approx(astuple(expected), abs=1e-6)


def test_undefined_references_are_left_out() -> None:
    share, reference, area = shares(0, 30)
    known = torch.arange(30) % 3 > 0
    holes = reference.masked_fill(~known, math.nan)
    assert agreement(share, holes, area) == agreement(share[known], reference[known], area[known])
    assert agreement(share, holes, area).pairs == 20


def test_what_cannot_be_known_is_nan() -> None:
    share, reference, area = shares(0, 30)
    none = agreement(share, torch.full_like(reference, math.nan), area)
    assert none.pairs == 0
    assert all(math.isnan(x) for x in astuple(none)[1:])
    same = agreement(torch.full_like(share, 0.5), reference, area)
    assert math.isnan(same.correlation)
    assert math.isnan(same.slope)
    assert same.rmse == pytest.approx(float((reference - 0.5).square().mean().sqrt()))
    assert math.isnan(agreement(area.float() + 1e-8, reference, area).partial)  # the area, up to rounding
