"""Equal programs have equal labels: all spellings of a function have the label matrix of the first."""

from __future__ import annotations

import pytest
import torch
from helpers import slow_except
from torch import Tensor

from equivalents import (
    attention,
    beside,
    differences,
    factors,
    gates,
    indices,
    keys,
    latents,
    mixing,
    outer,
    products,
    published,
    repeated,
    scattered,
    softmax,
    sums,
    windows,
    writes,
)
from equivalents.spelling import Group, label_matrices, of_gates, of_products

MODULES = (
    attention,
    beside,
    differences,
    factors,
    gates,
    indices,
    keys,
    latents,
    mixing,
    outer,
    products,
    published,
    repeated,
    scattered,
    softmax,
    sums,
    windows,
    writes,
)
GROUPS: list[Group] = [group for module in MODULES for group in module.GROUPS]
NOT_LINEAR = {
    *("maximum", "alpha", "instance_of_tokens", "cumsum", "joined_as_channels", "diagonal", "diagonal_by_einsum"),
    *("mean_of_stack", "written_mean_of_stack", "index_add_by_size", "scatter_add_by_size"),
}
"""Spellings that are another function of products with a factor, which sums weight by it, or whose channels then have
different labels, or that are normalised by a matrix; sums of a stack, in which summands count by the factor, and sums
that are divided by the numbers of summands."""
PRODUCTS = [of_products(group, *NOT_LINEAR) for group in GROUPS if "factor" not in group.parts]
GATED = [group for group in GROUPS if group is not factors.LENGTH]  # one that differs: docs/limits.md
FEW = [group for group in PRODUCTS if group.name.startswith(("attention with", "padding"))]


def name_of(group: Group) -> str:
    return group.name.replace(" ", "_")


each_group = pytest.mark.parametrize("group", GROUPS, ids=name_of)
SLOW = [
    *(group for group in factors.GROUPS if group is not factors.CHANNELWISE),
    *(softmax.SCORED, softmax.WINDOWS, softmax.ONE_WEIGHT, gates.MEANS, indices.SORTED, indices.GRAPH),
    *(products.BROADCAST, windows.DEFORMABLE, indices.NEIGHBOURS),
]


@pytest.mark.parametrize("group", slow_except([g for g in GROUPS if g not in SLOW], GROUPS), ids=name_of)
def test_spellings_of_one_function(group: Group) -> None:
    compare(label_matrices(group))


@pytest.mark.parametrize("group", slow_except(FEW, PRODUCTS), ids=name_of)
def test_spellings_of_one_function_of_products(group: Group) -> None:
    compare(label_matrices(group))


@pytest.mark.parametrize("group", slow_except([gates.NORMS, sums.RESIDUAL], GATED), ids=name_of)
def test_spellings_of_one_function_of_gated_tokens(group: Group) -> None:
    compare(label_matrices(of_gates(group)))


@pytest.mark.slow
@each_group
def test_each_spelling_by_itself(group: Group) -> None:
    compare({name: label_matrices(group, name)[name] for name in group.spellings})


def compare(matrices: dict[str, Tensor]) -> None:
    """All matrices equal the first, and their rows sum to 1."""
    first = next(iter(matrices.values()))
    gaps = {name: (matrix - first).abs().max().item() for name, matrix in matrices.items()}
    assert {name: gap for name, gap in gaps.items() if not gap < 1e-6} == {}
    torch.testing.assert_close(first.sum(-1), torch.ones(first.shape[:-1]), rtol=0, atol=1e-5)
