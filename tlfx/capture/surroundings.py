"""Contexts of a capture: gradient and autocast modes, no output, replaced attributes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["capture_mode", "quiet", "replaced"]


@contextlib.contextmanager
def capture_mode(device: str, gradients: bool = True) -> Iterator[None]:
    """Gradients on, unless the forward asks for the mode, so that regions without them are visible; autocast unchanged,
    without its cache of weights, which would outlive the capture."""
    device = "cpu" if device == "meta" else device  # the meta device has no autocast
    autocast = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
    )
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), autocast:
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute in the context; what the owner inherits is inherited again afterwards."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before) if own else delattr(owner, name)


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
