"""Checkpoints, read without running code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict

from tlfx.errors import ModelError

__all__ = ["EMA_KEYS", "holds_average", "read_weights"]

EMA_KEYS = ("state_dict_ema", "model_ema")
"""Where timm keeps the moving average of the weights."""


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
