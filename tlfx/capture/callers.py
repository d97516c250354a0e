"""Who calls a function that capture has replaced, and where in the code of the model."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from tlfx.capture import autograd_functions
from tlfx.capture.model_class import class_name
from tlfx.capture.state.reach import OTHERS

__all__ = ["Refuse", "caller", "place", "refusing", "unless_in_torch"]

Refuse = Callable[[str], None]
"""Raises the error that says why a call is refused."""


def caller() -> FrameType:
    """The frame of the code that called the function in which this is called."""
    frame: Any = inspect.currentframe()
    try:
        caller: FrameType = frame.f_back.f_back
        return caller
    finally:
        del frame  # it would refer to itself


def refusing(refuse: Refuse, reason: str) -> Callable[..., None]:
    """A function that is refused, whoever calls it."""
    return lambda *args, **kwargs: refuse(reason)


def unless_in_torch(refuse: Refuse, original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """A function that only torch may call, or an autograd function, which an aligned call runs as it is."""

    def call(*args: Any, **kwargs: Any) -> Any:
        frame: FrameType | None = caller()
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back
        is_torch = str(frame and frame.f_globals.get("__name__")).partition(".")[0] == "torch"
        while frame is not None and not is_torch and frame.f_globals.get("__name__") != autograd_functions.__name__:
            frame = frame.f_back
        if frame is None:
            refuse(reason)
        return original(*args, **kwargs)

    return call


def place(model: nn.Module) -> str:
    """The module and the line of the code of a model that is running."""
    paths = {id(module): path for path, module in model.named_modules()}
    frame: FrameType | None = caller()
    line = module = None
    while frame is not None and module is None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if line is None and package not in OTHERS:
            name, number = frame.f_code.co_filename, frame.f_lineno
            line = f"{name}:{number} in {frame.f_code.co_name}: {linecache.getline(name, number).strip()}"
        owner = frame.f_locals.get("self")
        module = owner if isinstance(owner, nn.Module) and id(owner) in paths else None
        frame = frame.f_back
    module = module or model
    path = paths.get(id(module), "") or "the model itself"
    return f"  module: {path} ({class_name(module)})\n  source: {line or 'unknown'}"
