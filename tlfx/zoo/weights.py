"""Loading weights: a state_dict whose names and shapes are checked before it is loaded."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlfx.errors import ModelError, a_type, named

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PARTS", "PREFIXES", "Differences", "differences", "load_weights"]

PARTS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where checkpoints keep weights, the moving averages of timm first."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel, moving averages and torch.compile add to names."""


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load the weights in a file, which ``torch.save`` wrote, into a model.

    The file holds a state_dict, or a checkpoint of tlfx or timm with one under a name of :data:`PARTS`: the moving
    average of the weights if there is one. Prefixes of wrappers (:data:`PREFIXES`) are removed from the names. Names in
    the checkpoints of a model's authors, such as those of Swin, become timm's if timm can rename them. No code in the
    file is run.

    Raises ModelError if the file holds no state_dict, or its names and shapes differ from the model's; the model is
    then unchanged.
    """
    state = _unwrapped(_state_in(_read(file), str(file)))
    if differences(state, model.state_dict()):
        state = _renamed(model, state)
    _check(model, state, str(file))
    model.load_state_dict(state)


def _read(file: str | Path) -> Any:
    import torch

    if not Path(file).is_file():
        raise ModelError(f"--weights: there is no file {str(file)!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that timm saves
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text is about options of torch.load
        raise ModelError(
            f"--weights {str(file)!r} is not a file of torch.save, or holds objects other than tensors, containers and "
            "numbers of Python; write it with torch.save(model.state_dict(), file)"
        ) from error
    except Exception as error:  # what torch.load raises for other files: KeyError, EOFError, RuntimeError, …
        raise ModelError(
            f"--weights {str(file)!r} cannot be read as tensors ({type(error).__name__}); write it with "
            "torch.save(model.state_dict(), file)"
        ) from error


def _state_in(content: Any, file: str) -> dict[str, Any]:
    """The state_dict in what a file holds."""
    import torch

    if isinstance(content, dict):
        parts = [content[name] for name in PARTS if isinstance(content.get(name), dict)]
        for state in (*parts, content):
            if all(isinstance(value, torch.Tensor) for value in state.values()):
                return dict(state)
    held = f"a dict of {named(list(map(str, content)))}" if isinstance(content, dict) else a_type(content)
    raise ModelError(
        f"--weights {file!r} holds {held}, expected a state_dict (names and tensors), or one under "
        f"{', '.join(PARTS)}: save only that part"
    )


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Names without the prefixes that wrappers of a model add to all of them."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _unwrapped({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _renamed(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Weights under the names of timm, by the filter in the module of the model's class; unchanged if there is none, or
    if it would change values or drop weights of the model."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        renamed = rename(dict(state), model)
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError):  # weights of another model
        return state
    given = {id(value) for value in state.values()}
    only_names = not differences(renamed, model.state_dict()) and all(id(x) in given for x in renamed.values())
    return renamed if only_names else state


def _check(model: nn.Module, state: dict[str, Any], file: str) -> None:
    if differ := differences(state, model.state_dict()):
        raise ModelError(
            f"--weights {file!r} does not fit {type(model).__name__}: {differ}. Name the model that it was saved from, "
            "with the same --kwargs"
        )


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

    >>> import torch
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
    return f"({', '.join(map(str, value.shape))})" if hasattr(value, "shape") else type(value).__name__
