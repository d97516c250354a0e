"""Contexts of a capture: gradient and autocast modes, no output, replaced attributes."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["capture_mode", "package_of_caller", "quiet", "replaced", "replacements"]

_ACTIVE: list[tuple[Any, Any]] = []
"""What :func:`replaced` has replaced, and by what."""


@contextlib.contextmanager
def capture_mode(gradients: bool = True) -> Iterator[None]:
    """Gradients on, unless the forward asks for the mode, so that code without them is visible; autocast unchanged."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        try:
            yield
        finally:
            torch.clear_autocast_cache()  # of casts of weights without data


def package_of_caller() -> str:
    """The top-level package of the code that calls the function in which this is called."""
    function: Any = inspect.currentframe()
    try:
        return str(function.f_back.f_back.f_globals.get("__name__")).partition(".")[0]
    finally:
        del function  # a frame that refers to itself keeps those of its callers, and the modes of torch that they set


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute in the context; what the owner inherits is inherited again afterwards."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    _ACTIVE.append((before, value))
    try:
        yield
    finally:
        _ACTIVE.pop()
        setattr(owner, name, before) if own else delattr(owner, name)


def replacements() -> dict[int, Any]:
    """What replaces functions now, by the identities of the functions."""
    originals: dict[int, Any] = {}
    for before, value in reversed(_ACTIVE):  # one that is replaced twice stands for the last
        if callable(before):
            originals[id(before)] = originals.get(id(value), value)
    return originals


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of torch.export about a failed capture: the error says it in one line."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    log.setLevel(max(log.getEffectiveLevel(), logging.ERROR))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
