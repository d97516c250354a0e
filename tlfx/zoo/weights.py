"""Loading weights: a state_dict whose names and shapes are checked before it is loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlfx.errors import ModelError, named

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Differences", "differences", "load_weights"]


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load a state_dict, which ``torch.save`` wrote and which holds only tensors, into a model.

    Raises ModelError if the file is not such a state_dict, or its names and shapes differ from the model's; the model
    is then unchanged.
    """
    import torch

    if not Path(file).is_file():
        raise ModelError(f"--weights: there is no file {str(file)!r}")
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"--weights {str(file)!r} cannot be read as tensors ({str(error).splitlines()[0]}); write it with "
            "torch.save(model.state_dict(), file)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        held = f"a dict of {named(list(map(str, state)))}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise ModelError(
            f"--weights {str(file)!r} holds {held}, expected a state_dict (names and tensors): save only that part"
        )
    _check(model, state, str(file))
    model.load_state_dict(state)


def _check(model: nn.Module, state: dict[str, Any], file: str) -> None:
    if found := differences(state, model.state_dict()):
        raise ModelError(
            f"--weights {file!r} does not fit {type(model).__name__}: {found}. Name the model that it was saved from, "
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
