"""The built-in rules, one file per operator family. Importing the package registers them all."""

from . import (
    attention,
    contraction,
    convolution,
    creation,
    indexing,
    movement,
    normalisation,
    pointwise,
    pooling,
    recurrence,
    reduction,
    resampling,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "creation",
    "indexing",
    "movement",
    "normalisation",
    "pointwise",
    "pooling",
    "recurrence",
    "reduction",
    "resampling",
]
