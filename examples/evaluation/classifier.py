"""The model under evaluation, with its weights, its normalisation and a selection of its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from weights import EMA_KEYS, holds_average, read_weights

from evaluation.folders import Classes
from tlfx.errors import ModelError
from tlfx.zoo import models
from tlfx.zoo.weights import differences

__all__ = ["Classifier", "build", "load_weights"]


class Classifier(nn.Module):
    """A model on pixels: maps images float (B, C, H, W) in [0, 1] to logits (B, labels) of the selected classes.

    It normalises pixels by ``mean`` and ``std`` per channel, so that attacks are bounded in pixels.
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
        """Logits (B, labels). Raises ModelError if their number differs from the classes, or if some are not finite."""
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        if logits.ndim != 2 or logits.shape[1] != self.logits:
            raise ModelError(
                f"the model returns {tuple(logits.shape)}, expected (B, {self.logits}), one logit per class"
            )
        if not logits.isfinite().all():  # topk would rank them without an error
            raise ModelError("some logits are infinite or NaN: the weights are damaged, or --amp overflows")
        return logits if self.columns is None else logits[:, self.columns]


def build(
    name: str,
    logits: int,
    kwargs: Mapping[str, Any],
    paths: Sequence[str] = (),
    img_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A model by its name, as in the tlfx command; models of timm and torchvision are built with this number of logits.

    Weights are random, or with ``pretrained`` those that timm downloads. Raises ModelError if it cannot be built.
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

    Raises ModelError if the file cannot be read, has no moving average, or is of another architecture; the message
    names the tensors that differ.
    """
    weights = read_weights(file, use_ema, "--checkpoint")
    if use_ema and not holds_average(file):
        raise ModelError(f"--checkpoint {file} has no moving average ({' or '.join(EMA_KEYS)}); omit --use-ema")
    if differ := differences(weights, model.state_dict()):
        raise ModelError(
            f"--checkpoint {file} does not fit {name}: {differ}. Give its architecture with --model and --kwargs; it "
            "must have one logit for each class of the dataset"
        )
    model.load_state_dict(weights)
