"""Loading weights: a state_dict whose names and shapes are checked before it is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlfx.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_weights"]

SHOWN = 5
"""Number of parameter names that a message lists."""


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
        held = f"a dict of {_listed(list(state))}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise ModelError(
            f"--weights {str(file)!r} holds {held}, expected a state_dict (names and tensors): save only that part"
        )
    _check(model, state, str(file))
    model.load_state_dict(state)


def _check(model: nn.Module, state: dict[str, Any], file: str) -> None:
    own = model.state_dict()
    shapes = [
        f"{k} {tuple(state[k].shape)}, not {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": shapes,
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names)
        raise ModelError(
            f"--weights {file!r} does not fit {type(model).__name__}: {told}. Name the model that it was saved from, "
            "with the same --kwargs"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
