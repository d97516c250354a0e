"""Colours and names of the classes in text and pictures; the colours are safe for colour-blind readers."""

from __future__ import annotations

from tlfx.operations import Operation

__all__ = ["COLORS", "WORDS", "count", "giga"]

COLORS = {
    Operation.SPATIAL_MIX: "#d55e00",
    Operation.CHANNEL_MIX: "#2b7cc4",
    Operation.POINTWISE: "#56b4e9",
    Operation.RESIDUAL: "#cc79a7",
    Operation.AGGREGATION: "#009e73",
    Operation.LAYOUT: "#9aa0a6",
    Operation.WEIGHT: "#e69f00",
    Operation.CONSTANT: "#bdc1c6",
}
WORDS = {
    Operation.SPATIAL_MIX: "spatial mixing",
    Operation.CHANNEL_MIX: "channel mixing",
    Operation.POINTWISE: "point-wise",
    Operation.RESIDUAL: "residual",
    Operation.AGGREGATION: "aggregation",
    Operation.LAYOUT: "layout",
    Operation.WEIGHT: "mixing weight",
    Operation.CONSTANT: "constant",
}


def giga(number: int) -> str:
    """A large number with a unit prefix.

    >>> giga(4_610_000_000), giga(5_500_000), giga(1200)
    ('4.61 G', '5.50 M', '1.20 K')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "operator"), count(2, "operator")
    ('1 operator', '2 operators')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
