"""Models by name: from timm, torchvision, or any importable factory. Weights are random unless they are asked for."""

# torch, timm and torchvision are imported inside functions, so that the help of a command starts without them.

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tlfx.errors import ModelError, TlfxError, a_type, named

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["add_paths", "library", "load", "parse_size", "without_weights"]

T = TypeVar("T")

IMAGE = (3, 224, 224)
CLIP_FRAMES = 16
SOURCES = ("hf-hub", "hf_hub", "local-dir")
"""Prefixes of names that timm reads from the Hugging Face hub or from a folder."""
MOST = 20
"""Most names that a message lists."""
DYNAMIC = ("img_size", "dynamic_img_size", "strict_img_size")
"""Arguments that build a timm model of fixed image size for another size."""


def load(
    name: str,
    kwargs: Mapping[str, Any] | None = None,
    paths: Iterable[str] = (),
    input_size: Sequence[int] | None = None,
    device: str = "cpu",
    pretrained: bool = False,
) -> tuple[nn.Module, Tensor]:
    """Build a model with random weights, and an example batch: images (2, channels, height, width) or video clips.

    Args:
        name: ``"deit_tiny_patch16_224"`` (timm; ``"hf-hub:REPOSITORY"`` and ``"local-dir:FOLDER"`` too),
            ``"torchvision:swin_t"`` or ``"package.module:factory"``.
        kwargs: arguments of the model.
        paths: directories that are searched first when importing.
        input_size: (size,), (height, width), (channels, height, width) or (channels, frames, height, width); by
            default the size in the model's configuration, else 224.
        device: ``"meta"`` for a model without memory for its parameters.
        pretrained: load the weights that timm or torchvision publishes for the model, which may download them.

    Raises ModelError if the name is unknown (the message lists similar names), the model cannot be built, or it takes
    only images of another size.

    >>> model, images = load("test_vit", {"num_classes": 10})
    >>> tuple(images.shape)
    (2, 3, 160, 160)
    """
    options = dict(kwargs or {})
    add_paths(paths)
    source, colon, rest = name.partition(":")
    if not colon or source in SOURCES:
        build = _timm(name, options, pretrained)
    elif source == "torchvision":
        build = _torchvision(rest, options, pretrained)
    elif pretrained:
        raise ModelError(f"--pretrained: {name} publishes no weights; pass a file as --weights, or use --kwargs")
    else:
        build = _imported(source, rest, options)
    model, fallback = _built(name, build, device, pretrained)
    own = _own_size(model, fallback, options)
    size = _full_size(own, input_size)
    _check_size(name, model, own, size, options)
    return model, _images(size, device)


def without_weights(analyse: Callable[[str], T]) -> T:
    """The result of an analysis of a model on the meta device, or on the CPU if the model must compute something.

    Args:
        analyse: a function of the device, which loads the model there.

    >>> without_weights(lambda device: load("test_vit", device=device)[1].device.type)
    'meta'
    """
    try:
        return analyse("meta")
    except (TlfxError, NotImplementedError, RuntimeError):
        return analyse("cpu")


def parse_size(text: str) -> tuple[int, ...]:
    """A size from numbers joined by ``x``. Raises ModelError.

    >>> parse_size("3x224x192")
    (3, 224, 192)
    """
    try:
        size = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        size = ()
    if not 1 <= len(size) <= 4 or min(size) < 1:
        raise ModelError(f"--input-size {text!r}: expected H, HxW, CxHxW or CxTxHxW, such as 224 or 3x224x192")
    return size


Built = tuple["nn.Module", "tuple[int, ...]"]
"""A model, and its image size if its configuration has none."""


def _timm(name: str, kwargs: dict[str, Any], pretrained: bool) -> Callable[[], Built]:
    timm = library("timm", name)
    if ":" not in name and not timm.is_model(name):
        raise _unknown("timm model", name, timm.list_models())
    _check_no_weights(kwargs, "pretrained")
    return lambda: (timm.create_model(name, pretrained=pretrained, **kwargs), IMAGE)


def _torchvision(name: str, kwargs: dict[str, Any], pretrained: bool) -> Callable[[], Built]:
    models = library("torchvision.models", f"torchvision:{name}")
    if name not in models.list_models():
        raise _unknown("torchvision model", name, models.list_models())
    _check_no_weights(kwargs, "weights", "weights_backbone")
    builder = models.get_model_builder(name)
    dense = ("segmentation", "detection")
    # Detection and segmentation models download backbone weights by default.
    bare = {"weights_backbone": None} if any(f".{d}." in builder.__module__ for d in dense) else {}
    transforms = getattr(models.get_model_weights(name).DEFAULT, "transforms", None)
    crop = getattr(transforms, "keywords", {}).get("crop_size", IMAGE[-1])
    frames = (CLIP_FRAMES,) if ".video." in builder.__module__ else ()
    size = (IMAGE[0], *frames, *((crop, crop) if isinstance(crop, int) else crop))
    weights = "DEFAULT" if pretrained else None
    return lambda: (builder(weights=weights, **bare, **kwargs), size)


def _imported(module_name: str, path: str, kwargs: dict[str, Any]) -> Callable[[], Built]:
    name = f"{module_name}:{path}"
    try:
        factory: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(f"{name}: {error}; pass the directory of the module with --path DIR") from error
    except Exception as error:
        raise ModelError(f"{name}: {module_name} cannot be imported: {_told(error)}") from error
    for part in path.split("."):
        if not hasattr(factory, part):
            names = [n for n in dir(factory) if not n.startswith("_")]
            raise _unknown(f"attribute of {getattr(factory, '__name__', module_name)}", part, names)
        factory = getattr(factory, part)
    if not callable(factory):
        raise ModelError(f"{name} is {a_type(factory)}, expected a function or class that makes a model")
    return lambda: (factory(**kwargs), IMAGE)


def _built(name: str, build: Callable[[], Built], device: str, pretrained: bool) -> Built:
    import torch
    from torch import nn

    try:
        with torch.device(device) if device != "cpu" else contextlib.nullcontext():
            model, size = build()
    except Exception as error:
        remedy = ". Its weights may be out of reach: pass a file as --weights instead of --pretrained"
        raise ModelError(f"{name} cannot be built: {_told(error)}{remedy if pretrained else ''}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} makes {a_type(model)}, expected a torch.nn.Module")
    return model, size


def _own_size(model: nn.Module, fallback: tuple[int, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """The image size in the configuration of a model, or the one that it was built for."""
    config = getattr(model, "default_cfg", None)
    size = (config.get("input_size") if isinstance(config, dict) else None) or fallback
    square = getattr(model, "image_size", None)
    plane = kwargs.get("img_size", square if isinstance(square, int) else size[-2:])
    plane = (plane, plane) if isinstance(plane, int) else tuple(plane)
    return kwargs.get("in_chans", size[0]), *size[1:-2], *plane


def _full_size(own: tuple[int, ...], given: Sequence[int] | None) -> tuple[int, ...]:
    """The given size, completed with the model's channels and frames if only height and width are given."""
    if given is None:
        return own
    if len(given) <= 2:
        return *own[:-2], given[0], given[-1]
    return tuple(given)


def _check_size(
    name: str, model: nn.Module, own: tuple[int, ...], size: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    """ModelError if timm's configuration excludes a size; other wrong sizes show when the model is captured."""
    config = getattr(model, "default_cfg", None)
    fixed = isinstance(config, dict) and config.get("fixed_input_size") and not any(k in kwargs for k in DYNAMIC)
    if size[-2:] != own[-2:] and (fixed or hasattr(model, "image_size")):
        option = "img_size" if isinstance(config, dict) else "image_size"
        raise ModelError(
            f"{name} takes images of {own[-2]}x{own[-1]}, not {size[-2]}x{size[-1]}; "
            f"to build it for others, try --kwargs '{{\"{option}\": {size[-2]}}}'"
        )


def _images(size: tuple[int, ...], device: str) -> Tensor:
    import torch

    if device == "meta":
        return torch.empty(2, *size, device=device)
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(device)


def add_paths(paths: Iterable[str]) -> None:
    """Import from these directories first. Raises ModelError if a path is not a directory."""
    for path in reversed(list(paths)):
        if not Path(path).is_dir():
            raise ModelError(f"--path {path!r} is not a directory")
        full = str(Path(path).resolve())
        # Never removed: a model may import more of its package when it runs.
        if full not in sys.path:
            sys.path.insert(0, full)


def library(module: str, name: str) -> Any:
    """A module of a library. Raises ModelError if it is not installed, with the ``name`` of what needs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ModelError(f"{name} needs {library} (pip install {library}): {error}") from error


def _check_no_weights(kwargs: dict[str, Any], *names: str) -> None:
    for name in names:
        if kwargs.pop(name, None):
            raise ModelError(
                f"{name}: --kwargs load no weights; remove the option, or use --pretrained in a command that has it"
            )


def _unknown(kind: str, name: str, known: Sequence[str]) -> ModelError:
    longer = [other for other in known if name and other.startswith(name)]
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if len(longer) > 1:
        advice = f"{len(longer)} names begin so: {named(longer, most=MOST)}"
    else:
        advice = (
            f"did you mean {', '.join(near)}?"
            if near
            else "no known name is similar; a model of your own is PACKAGE.MODULE:FACTORY"
        )
    return ModelError(f"unknown {kind} {name!r}; {advice}")


def _told(error: Exception) -> str:
    """Text of an error with the source line that raised it."""
    text = str(error) or "no message"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f"\n  source: {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}: {text}{where}"
