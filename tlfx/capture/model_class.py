"""The class and the forward that a model had before it was aligned."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["CHOSEN", "class_name", "own_class", "own_forward", "own_parameters"]

CHOSEN = "_tlfx_forward"
"""Where an aligned model keeps the forward that its instance had (``self.forward = self.forward_features``), which as
``forward`` would hide that of the aligned class."""


def own_class(model: nn.Module) -> type[nn.Module]:
    """The class of a model; of an aligned model, the class that was aligned."""
    base: type[nn.Module] = getattr(type(model), "_tlfx_base", type(model))
    return base


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """The forward that a model has without alignment, a function of the model and its arguments."""
    if CHOSEN not in vars(model):
        return own_class(model).forward
    chosen = vars(model)[CHOSEN]
    return lambda _, *args, **kwargs: chosen(*args, **kwargs)


def own_parameters(model: nn.Module) -> list[inspect.Parameter]:
    """The parameters of :func:`own_forward`, without the model itself."""
    if CHOSEN in vars(model):
        return list(inspect.signature(vars(model)[CHOSEN]).parameters.values())
    return list(inspect.signature(own_class(model).forward).parameters.values())[1:]


def class_name(model: nn.Module) -> str:
    """The name of :func:`own_class`, as its user wrote it."""
    return own_class(model).__name__
