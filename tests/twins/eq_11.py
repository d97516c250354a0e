"""Eq. 11: labels through a block, Y' = Norm(Ŷ + Y), then Norm(Y' + Y'); Norm is "a simple average"."""

from __future__ import annotations

from torch import Tensor


def residual(branch: Tensor, labels: Tensor, normalised: bool = True) -> Tensor:
    """Norm(Ŷ + Y), label by label; without Norm for the row "Normalization Disabled" of Table 8."""
    total = labels.clone()
    for place, (one, other) in enumerate(zip(branch.tolist(), labels.tolist(), strict=True)):
        total[place] = (one + other) / 2 if normalised else one + other
    return total


def block_labels(branch: Tensor, labels: Tensor, normalised: bool = True) -> Tensor:
    """Labels after a block, from Ŷ of its spatial mixing: the MLP keeps the label of each token."""
    between = residual(branch, labels, normalised)
    return residual(between, between, normalised)
