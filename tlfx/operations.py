"""The operations of Table 10: the effect of an operator on the labels of a value."""

from __future__ import annotations

from enum import Enum

__all__ = ["Operation"]


class Operation(Enum):
    """Class of a graph node, with its label rule in the paper's notation (arXiv 2210.06455, Table 10).

    LAYOUT, WEIGHT and CONSTANT are not in the table; with them, every node of a graph has a class.

    >>> Operation.RESIDUAL.formula
    'Y ← Norm(Y + g(Y))'
    """

    SPATIAL_MIX = "spatial_mix"
    CHANNEL_MIX = "channel_mix"
    POINTWISE = "pointwise"
    RESIDUAL = "residual"
    AGGREGATION = "aggregation"
    LAYOUT = "layout"
    WEIGHT = "weight"
    CONSTANT = "constant"

    @property
    def formula(self) -> str:
        """The label rule in the paper's notation."""
        return _FORMULAS[self]

    @property
    def has_label_arithmetic(self) -> bool:
        """Whether the operation may compute new labels."""
        return self in (Operation.SPATIAL_MIX, Operation.RESIDUAL, Operation.AGGREGATION)


_FORMULAS = {
    Operation.SPATIAL_MIX: "Y ← Norm(W)·Y",
    Operation.CHANNEL_MIX: "Y ← Y",
    Operation.POINTWISE: "Y ← Y",
    Operation.RESIDUAL: "Y ← Norm(Y + g(Y))",
    Operation.AGGREGATION: "Y ← Norm(Σ Yᵢ)",
    Operation.LAYOUT: "Y ← Y, moved",
    Operation.WEIGHT: "W(Z)",
    Operation.CONSTANT: "no label",
}
