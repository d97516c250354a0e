"""The built-in rules, one file per operator family. Importing the package registers them all."""

from . import (
    attention,
    contraction,
    convolution,
    creation,
    difference,
    indexing,
    loss,
    movement,
    normalisation,
    pointwise,
    pooling,
    recurrence,
    reduction,
    resampling,
    similarity,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "creation",
    "difference",
    "indexing",
    "loss",
    "movement",
    "normalisation",
    "pointwise",
    "pooling",
    "recurrence",
    "reduction",
    "resampling",
    "similarity",
]
