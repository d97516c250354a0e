"""The model: built by name, and its initial weights."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from weights import read_weights

import tlfx
from tlfx.errors import InputError, ModelError
from tlfx.zoo.models import load
from tlfx.zoo.weights import differences

__all__ = ["align", "build_model", "check_weights", "load_weights"]


def build_model(options: Namespace, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """A model with random weights, and the configuration of its images: size, mean, std, crop.

    Raises ModelError if it cannot be built, InputError if the size of images is not a multiple of its patches.
    """
    kwargs = {
        "num_classes": num_classes,
        "drop_rate": options.drop,
        "drop_path_rate": options.drop_path,
        "img_size": options.img_size if _is_built_for_a_size(options.model) else None,
        **options.model_kwargs,
    }
    size = None if options.img_size is None else (options.img_size, options.img_size)
    torch.manual_seed(options.seed)
    given = {key: value for key, value in kwargs.items() if value is not None}
    model, example = load(options.model, given, options.path, size)
    _check_patches(model, example)
    if options.grad_checkpointing:
        _checkpoint_gradients(model, options.model)
    config = resolve_data_config({**vars(options), "input_size": tuple(example.shape[1:])}, model=model)
    return model, config


def _is_built_for_a_size(name: str) -> bool:
    return bool(timm.is_model(name) and getattr(get_pretrained_cfg(name), "fixed_input_size", False))


def _check_patches(model: nn.Module, images: Tensor) -> None:
    """Raise InputError if the patches of the first convolution do not cover the image: the rest would be dropped."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or any(p != 0 for p in first.padding):
        return
    height, width = images.shape[-2:]
    if height % first.stride[0] or width % first.stride[1]:
        raise InputError(
            f"images of {height}×{width} pixels are not a multiple of the model's patches of "
            f"{first.stride[0]}×{first.stride[1]}: pass an --img-size that is a multiple of them"
        )


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise InputError(f"--grad-checkpointing: {name} has no method set_grad_checkpointing, as models of timm have")
    switch: Any = model.set_grad_checkpointing
    switch(True)


def align(model: nn.Module, options: Namespace, example: Tensor | None = None) -> nn.Module:
    """The model, aligned in place as the options say, and captured immediately if there is an example of its images."""
    if not options.align:
        return model
    layers = options.align_layers and [int(x) if x.lstrip("-").isdigit() else x for x in options.align_layers]
    return tlfx.align(model, layers=layers, policy=tlfx.Policy(residual=options.residual), example=example)


def load_weights(model: nn.Module, file: Path, reset_classifier: bool, flag: str = "--initial-checkpoint") -> None:
    """Load the weights of a checkpoint, all but a new classifier. Raises ModelError if they are of another model."""
    weights = read_weights(file, use_ema=True, flag=flag)
    if reset_classifier:
        weights = {**weights, **_classifier(model)}
    check_weights(model, weights, f"{flag} {file}")
    model.load_state_dict(weights)


def check_weights(model: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Raise ModelError unless weights have the names and shapes of a model's; the message names what differs."""
    differ = differences(weights, model.state_dict())
    classifier = _classifier(model)
    if differ.shapes and not (differ.missing or differ.unexpected) and all(key in classifier for key in differ.shapes):
        key = next(iter(differ.shapes))
        raise ModelError(
            f"{source} has {weights[key].shape[0]} classes, expected {classifier[key].shape[0]}; "
            "--reset-classifier starts with a new classifier"
        )
    if differ:
        raise ModelError(
            f"{source} does not fit {type(model).__name__}: {differ}. Compare --model, --model-kwargs "
            "and --img-size with those of its model"
        )


def _classifier(model: nn.Module) -> dict[str, Tensor]:
    """State of the classifier: that of timm's get_classifier, or of the last linear layer."""
    own = model.state_dict()
    classifier = getattr(model, "get_classifier", lambda: None)()
    heads = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    heads = [head for head in heads if isinstance(head, nn.Module)]
    heads = heads or [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    names = [name for name, module in model.named_modules() if any(module is head for head in heads)]
    return {key: own[key] for key in own if any(key.startswith(f"{name}.") for name in names)}
