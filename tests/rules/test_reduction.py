"""Statistics: aggregation over tokens, channel mixing over channels (Table 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, several, tokens
from torch import Tensor, nn

from tlfx import Operation
from tlfx.propagate.values import Role

SIZE = (4, 3, 5)

STATISTICS: dict[str, Callable[..., Any]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "nansum": torch.nansum,
    "nanmean": torch.nanmean,
    "amax": torch.amax,
    "amin": torch.amin,
    "logsumexp": torch.logsumexp,
    "var": torch.var,
    "std": torch.std,
    "var_biased": lambda x, dim, keepdim=False: torch.var(x, dim, unbiased=False, keepdim=keepdim),
    "std_corrected": lambda x, dim, keepdim=False: torch.std(x, dim, correction=2, keepdim=keepdim),
    "norm": lambda x, dim, keepdim=False: torch.norm(x, dim=dim, keepdim=keepdim),
    "norm_1": lambda x, dim, keepdim=False: torch.norm(x, 1, dim, keepdim),
    "vector_norm": lambda x, dim, keepdim=False: torch.linalg.vector_norm(x, 3, dim, keepdim),
    "any": lambda x, dim, keepdim=False: torch.any(x, dim, keepdim),
}
"""Reductions over one or several axes."""

ALONG_ONE: dict[str, Callable[..., Any]] = {
    "prod": torch.prod,
    "max": lambda x, dim, keepdim=False: torch.max(x, dim, keepdim).values,
    "min": lambda x, dim, keepdim=False: torch.min(x, dim, keepdim).values,
    "median": lambda x, dim, keepdim=False: torch.median(x, dim, keepdim).values,
    "nanmedian": lambda x, dim, keepdim=False: torch.nanmedian(x, dim, keepdim).values,
    "mode": lambda x, dim, keepdim=False: torch.mode(x, dim, keepdim).values,
    "kthvalue": lambda x, dim, keepdim=False: torch.kthvalue(x, 2, dim, keepdim).values,
    "quantile": lambda x, dim, keepdim=False: torch.quantile(x, 0.3, dim, keepdim),
    "all": torch.all,
}
"""Reductions over one axis."""


@pytest.mark.parametrize("name", slow_except(("mean", "nansum", "amin", "std_corrected", "norm", "any"), STATISTICS))
def test_over_tokens_is_aggregation(name: str) -> None:
    probe = check(lambda x: STATISTICS[name](x, (2, 3)), lambda y, x: y.mean((2, 3)), SIZE)
    assert Operation.AGGREGATION in probe.propagation.operations.values()


@pytest.mark.parametrize(
    "name",
    slow_except(("mean", "sum", "amax", "var", "norm_1", "any", "prod", "max", "kthvalue"), STATISTICS | ALONG_ONE),
)
def test_over_channels_leaves_labels(name: str) -> None:
    probe = check(
        lambda x: (STATISTICS | ALONG_ONE)[name](x, 1, keepdim=True), lambda y, x: y.mean(1, keepdim=True), SIZE
    )
    assert Operation.CHANNEL_MIX in probe.propagation.operations.values()


@pytest.mark.parametrize("name", slow_except(("prod", "min", "median", "kthvalue", "all"), ALONG_ONE))
def test_along_one_axis(name: str) -> None:
    check(lambda x: ALONG_ONE[name](x, 2), lambda y, x: y.mean(2), SIZE)


@several(12)
@given(st.sets(st.sampled_from([1, 2, 3]), min_size=1), st.booleans(), st.permutations(range(4)), st.booleans())
def test_any_axes_in_any_layout(gone: set[int], keepdim: bool, order: list[int], negative: bool) -> None:
    axes = [order.index(a) - (4 if negative else 0) for a in gone]

    def function(x: Tensor) -> Tensor:
        out = x.permute(order).mean(axes, keepdim)
        return out if out.dim() > 1 else out[:, None]

    check(function, lambda y, x: function(y), SIZE)


def test_batch_merged_with_windows() -> None:
    """The mean of each window."""

    def cut(x: Tensor) -> Tensor:
        return x.view(-1, 4, 3, 5).permute(0, 2, 3, 1).reshape(-1, 5, 4)

    check(lambda x: cut(x).mean(1), lambda y, x: cut(y).mean(1), SIZE, {"mean": Operation.AGGREGATION})


def test_uneven_repetitions_count_as_often_as_they_occur() -> None:
    """A token seen twice counts twice."""
    check(
        lambda x: torch.cat((x, x[:, :, :1], x[:, :, :1]), 2).mean((2, 3)),
        lambda y, x: torch.cat((y, y[:, :, :1], y[:, :, :1]), 2).mean((2, 3)),
        SIZE,
    )


def test_padding_does_not_count() -> None:
    check(
        lambda x: torch.nn.functional.pad(x, (1, 2)).sum((2, 3)),
        lambda y, x: y.mean((2, 3)),
        SIZE,
        {"sum": Operation.AGGREGATION},
    )


def test_mean_of_all_axes_but_the_batch() -> None:
    check(lambda x: x.mean((1, 2, 3), keepdim=True), lambda y, x: y.mean((1, 2, 3), keepdim=True), SIZE)


@pytest.mark.parametrize("name", ["var_mean", "std_mean"])
def test_two_statistics(name: str) -> None:
    function = getattr(torch, name)
    for options in ({"correction": 0}, {"unbiased": False}):
        check(
            lambda x, options=options: function(x, (2, 3), keepdim=True, **options),
            lambda y, x: [y.mean((2, 3), keepdim=True)] * 2,
            SIZE,
            {name: Operation.AGGREGATION},
        )


def test_both_extremes() -> None:
    check(lambda x: tuple(torch.aminmax(x, dim=2)), lambda y, x: [y.mean(2)] * 2, SIZE)


@pytest.mark.parametrize("name", ["max", "min", "median", "mode"])
def test_indices_are_decisions(name: str) -> None:
    probe = Probe(lambda x: tuple(getattr(torch, name)(x, 2)), SIZE)
    assert probe.roles == [Role.CONTENT, Role.WEIGHT]


DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda x: x.argmax(2),
    "argmin": lambda x: x.argmin(2, keepdim=True),
    "argsort": lambda x: x.argsort(2),
    "argsort_stable": lambda x: x.argsort(dim=2, stable=True),
    "count_nonzero": lambda x: x.count_nonzero(2),
    "sum_of_the_batch": lambda x: x.sum(),
    "mean_over_the_batch": lambda x: x.mean(0),
    "maximum_of_all": lambda x: x.max(),
    "median_of_all": lambda x: x.median(),
    "norm_of_all": lambda x: x.norm(),
    "var_of_all": lambda x: x.var(),
    "std_of_all": lambda x: x.std(unbiased=False),
}
ALIKE = {"argmin", "argsort_stable", "sum_of_the_batch", "maximum_of_all", "var_of_all"}
"""Like another of these; they are tested by ``make slow``."""


@pytest.mark.parametrize("name", slow_except(DECISIONS.keys() - ALIKE, DECISIONS))
def test_decisions_and_statistics_of_the_batch_have_no_label(name: str) -> None:
    probe = Probe(lambda x: (x, DECISIONS[name](x)), SIZE)
    assert probe.roles == [Role.CONTENT, Role.WEIGHT]


def test_sum_of_a_weight_over_keys_is_content_of_the_query() -> None:
    """How much each query has seen belongs to the query."""

    def function(x: Tensor) -> Tensor:
        return (tokens(x) @ tokens(x).transpose(1, 2)).exp().sum(-1, keepdim=True)

    check(function, lambda y, x: tokens(y)[..., :1], SIZE, {"sum": Operation.CHANNEL_MIX})


def test_mean_of_weights_over_heads_is_a_weight() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        parts = tokens(x).view(-1, 15, 2, 2).transpose(1, 2)
        return x, (parts @ parts.transpose(2, 3)).softmax(-1).mean(1)

    assert Probe(function, SIZE).roles == [Role.CONTENT, Role.WEIGHT]


def test_one_number_for_each_sample() -> None:
    """Values of one axis, the batch, have labels like any other."""
    check(
        lambda x: (x.mean((1, 2, 3)) + x.amax((1, 2, 3)) * x[:, 0, 0, 0])[:, None],
        lambda y, x: ((y.mean((1, 2, 3)) + (y.mean((1, 2, 3)) + y[:, 0, 0, 0]) / 2) / 2)[:, None],
        SIZE,
        {"add": Operation.RESIDUAL},
    )


def test_a_mean_without_nan_weights_by_factors() -> None:
    """Of a product with a factor, as mean does (Norm(|w|)·Y)."""
    factor, mask = nn.Parameter(torch.rand(5)), torch.rand(3, 1, 3, 5)
    means = (lambda x, w: (x * w).mean(3), lambda x, w: (x * w).nanmean(3))
    one, other = (Probe(mean, SIZE, w=factor).shares(mask)[0] for mean in means)
    torch.testing.assert_close(one, other)
