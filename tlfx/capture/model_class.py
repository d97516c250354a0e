"""The class that a model had before it was aligned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["class_name", "own_class", "own_forward"]


def own_class(model: nn.Module) -> type[nn.Module]:
    """The class of a model; of an aligned model, the class that was aligned."""
    base: type[nn.Module] = getattr(type(model), "_tlfx_base", type(model))
    return base


def own_forward(model: nn.Module) -> Callable[..., Any]:
    """The forward of :func:`own_class`, a function of the model and its arguments."""
    return own_class(model).forward


def class_name(model: nn.Module) -> str:
    """The name of :func:`own_class`, as its user wrote it."""
    return own_class(model).__name__
