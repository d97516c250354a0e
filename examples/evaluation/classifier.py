"""The model under evaluation: its weights from a file, its normalisation inside, and the logits that take part."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from evaluation.folders import Classes, named
from tlfx.errors import ModelError
from tlfx.zoo import models

__all__ = ["Classifier", "build", "differences", "load_weights"]

EMA_KEYS = ("state_dict_ema", "model_ema")


class Classifier(nn.Module):
    """A model on pixels: images float (B, C, H, W) in [0, 1] to logits (B, labels) of the classes that take part.

    Pixels are normalised inside, by ``mean`` and ``std`` per channel, so that attacks are measured in pixels.
    """

    mean: Tensor
    std: Tensor
    columns: Tensor | None

    def __init__(self, model: nn.Module, classes: Classes, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model, self.logits = model.eval().requires_grad_(False), classes.logits
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.register_buffer("columns", None if classes.columns is None else torch.tensor(classes.columns))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, labels). Raises ModelError if there are more or fewer than classes, or some are not finite."""
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        if logits.ndim != 2 or logits.shape[1] != self.logits:
            raise ModelError(f"the model makes {tuple(logits.shape)}, expected logits (B, {self.logits}), one a class")
        if not logits.isfinite().all():  # accuracy would not show it
            raise ModelError("some logits are infinite or no numbers: the weights are broken, or --amp overflows")
        return logits if self.columns is None else logits[:, self.columns]


def build(
    name: str,
    logits: int,
    kwargs: Mapping[str, Any],
    paths: Sequence[str] = (),
    img_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A model by its name, as the command tlfx has it; those of timm and torchvision with so many logits.

    Weights are random, or with ``pretrained`` those that timm downloads. Raises ModelError.
    """
    if pretrained:
        return _published(name, kwargs)
    libraries = ":" not in name or name.startswith("torchvision:")
    options = {"num_classes": logits, **kwargs} if libraries else kwargs
    return models.load(name, options, paths, None if img_size is None else (img_size,))[0]


def _published(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:
        raise ModelError(f"timm cannot make {name} with its published weights: {error}") from error
    return model


def load_weights(model: nn.Module, name: str, file: Path, use_ema: bool) -> None:
    """Load a checkpoint of timm's kind (state_dict, model, or bare) into a model, its moving average with ``use_ema``.

    Raises ModelError if the file cannot be read, has no moving average, or is one of another architecture; its
    message names what differs.
    """
    if not file.is_file():
        raise ModelError(f"there is no file {str(file)!r} to load weights from")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that timm saves; no other code
            lacks_average = use_ema and not _holds_ema(file)
            state = load_state_dict(str(file), use_ema=use_ema, weights_only=True)
    except Exception as error:  # of torch, pickle, zip files, safetensors
        raise ModelError(f"{file} cannot be read as a checkpoint: {error}") from error
    if lacks_average:
        raise ModelError(f"{file} holds no moving average ({' or '.join(EMA_KEYS)}); leave out --use-ema")
    if found := differences(state, model.state_dict()):
        raise ModelError(
            f"{file} holds no weights of {name}: {'; '.join(found)}. "
            "Name its architecture with --model and --kwargs; it has a logit for each class of the dataset"
        )
    model.load_state_dict(state)


def _holds_ema(file: Path) -> bool:
    if file.suffix == ".safetensors":
        return False
    checkpoint = torch.load(file, map_location="meta", weights_only=True)
    return isinstance(checkpoint, dict) and any(checkpoint.get(key) is not None for key in EMA_KEYS)


def differences(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from being loaded where ``own`` is; nothing if it can be.

    >>> differences({"weight": torch.ones(2), "scale": torch.ones(1)}, {"weight": torch.ones(3)})
    ['unknown: scale', 'of another shape: weight (2) for (3)']
    """
    shapes = [
        f"{key} {_shape(state[key])} for {_shape(value)}"
        for key, value in own.items()
        if key in state and _shape(state[key]) != _shape(value)
    ]
    kinds = {
        "missing": [key for key in own if key not in state],
        "unknown": [key for key in state if key not in own],
        "of another shape": shapes,
    }
    return [f"{kind}: {named(found, most=3)}" for kind, found in kinds.items() if found]


def _shape(value: Any) -> str:
    return f"({', '.join(map(str, value.shape))})" if isinstance(value, Tensor) else type(value).__name__
