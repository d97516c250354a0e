"""Arguments that several commands share: the model, its rules and weights, and the size of its images."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from tlfx.errors import InputError, ModelError
from tlfx.zoo.models import load, parse_size

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["add_input_size", "add_model", "add_rules", "add_weights", "model_from", "options_from"]


def add_model(parser: argparse.ArgumentParser, model: str = "model", several: bool = False, fewest: int = 1) -> None:
    """Add the arguments that select a model, its rules and the size of its images.

    Args:
        parser: the parser of a command.
        model: name of the positional argument, or an option such as ``--missing`` instead of it.
        several: accept several models, stored as ``models``, and at least ``fewest``, 0 or 1.
    """
    named: dict[str, Any] = {"dest": "model"} if model.startswith("-") else {}
    if several:
        model, named = "models", {"nargs": "+" if fewest else "*"}
    parser.add_argument(
        model,
        metavar="MODEL",
        help="a timm name (deit_small_patch16_224, hf-hub:REPOSITORY, local-dir:FOLDER), torchvision:NAME, or an "
        "import path package.module:factory",
        **named,
    )
    parser.add_argument("--kwargs", metavar="JSON", help="arguments of the model, such as '{\"num_classes\": 10}'")
    parser.add_argument(
        "--path", metavar="DIR", action="append", default=[], help="directory to import from; may be repeated"
    )
    add_rules(parser)
    add_input_size(parser)


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add the option that names files of rules."""
    parser.add_argument(
        "--rules", metavar="FILE", action="append", default=[], help="Python file of rules; may be repeated"
    )


def add_input_size(parser: argparse.ArgumentParser) -> None:
    """Add the option that sets the size of the images."""
    parser.add_argument("--input-size", metavar="SIZE", help="size of the images: H, HxW, CxHxW, or CxTxHxW for video")


def add_weights(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the option that names a file of weights, or with ``several`` one file for each model."""
    more = "; once for each model, in order" if several else ""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        action="append",
        default=[],
        help=f"state_dict or checkpoint of tlfx or timm{more}; default: random weights",
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="the weights that timm or torchvision publishes; may download them"
    )


def model_from(args: argparse.Namespace, device: str = "cpu") -> tuple[nn.Module, Tensor]:
    """The model that parsed arguments select, and two example images. Raises ModelError."""
    kwargs, size = options_from(args)
    pretrained = getattr(args, "pretrained", False)
    if pretrained and args.weights:
        raise InputError("--pretrained and --weights were both given: use only one of them")
    return load(args.model, kwargs, args.path, size, device, pretrained)


def options_from(args: argparse.Namespace) -> tuple[dict[str, Any] | None, tuple[int, ...] | None]:
    """The arguments of a model and the size of its images, None for those not given. Raises ModelError."""
    kwargs = None if args.kwargs is None else _parse_kwargs(args.kwargs)
    return kwargs, None if args.input_size is None else parse_size(args.input_size)


def _parse_kwargs(text: str) -> dict[str, Any]:
    example = "'{\"depth\": 4}'"
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(
            f"--kwargs {text!r} is not valid JSON: {error}; expected an object, such as {example}"
        ) from error
    if not isinstance(kwargs, dict):
        raise ModelError(f"--kwargs {text!r}: expected a JSON object such as {example}")
    return kwargs
