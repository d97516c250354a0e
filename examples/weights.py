"""Checkpoints: read without running code, and compared name by name with the model they are for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from class_folders import named
from timm.models import load_state_dict
from torch import Tensor

from tlfx.errors import ModelError

__all__ = ["EMA_KEYS", "Differences", "differences", "holds_average", "read_weights"]

EMA_KEYS = ("state_dict_ema", "model_ema")
"""Where timm keeps the moving average of the weights."""


@dataclass(frozen=True)
class Differences:
    """Tensors that keep weights from being loaded into a model; false if there are none.

    ``shapes`` has those of different shapes, with the shape in the weights and the one that the model expects.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: Mapping[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        """The first names of each kind."""
        shapes = [f"{name} is {given}, expected {expected}" for name, (given, expected) in self.shapes.items()]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "different shape": shapes}
        return "; ".join(f"{kind}: {named(names, most=3)}" for kind, names in kinds.items() if names)


def differences(weights: Mapping[str, Any], own: Mapping[str, Tensor]) -> Differences:
    """Differences between weights and the state_dict of a model, ``own``.

    >>> print(differences({"weight": torch.ones(2), "scale": torch.ones(1)}, {"weight": torch.ones(3)}))
    unexpected: scale; different shape: weight is (2), expected (3)
    """
    shapes = {name: (_shape(weights[name]), _shape(value)) for name, value in own.items() if name in weights}
    return Differences(
        missing=tuple(name for name in own if name not in weights),
        unexpected=tuple(name for name in weights if name not in own),
        shapes={name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
    )


def _shape(value: Any) -> str:
    return f"({', '.join(map(str, value.shape))})" if isinstance(value, Tensor) else type(value).__name__


def read_weights(file: Path, use_ema: bool, flag: str) -> dict[str, Any]:
    """The weights in a checkpoint of timm's kind (state_dict, model, or bare), or with ``use_ema`` their moving average
    if it holds one.

    ``flag`` is the command-line flag that messages name. Raises ModelError if the file does not exist or cannot be
    read.
    """
    if not file.is_file():
        raise ModelError(f"{flag}: there is no file {str(file)!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that timm saves; no other code
            weights: dict[str, Any] = load_state_dict(str(file), use_ema=use_ema, weights_only=True)
    except Exception as error:  # of torch, pickle, zip files, safetensors
        raise ModelError(f"{flag} {file} cannot be read as a checkpoint: {error or type(error).__name__}") from error
    return weights


def holds_average(file: Path) -> bool:
    """Whether a checkpoint that :func:`read_weights` can read holds a moving average."""
    if file.suffix == ".safetensors":
        return False
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(file, map_location="meta", weights_only=True)
    return isinstance(checkpoint, dict) and any(checkpoint.get(key) is not None for key in EMA_KEYS)
