"""Contexts of a capture: gradient and autocast modes, no output, restored model and random states."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

__all__ = ["capture_mode", "quiet", "state_kept"]


@contextlib.contextmanager
def capture_mode(device: str) -> Iterator[None]:
    """Gradients on, so that regions without gradients are visible; autocast unchanged, without its cache of weights,
    which would outlive the capture."""
    device = "cpu" if device == "meta" else device  # the meta device has no autocast
    autocast = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
    )
    with torch.inference_mode(False), torch.enable_grad(), autocast:
        yield


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


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Restore the random states of torch, NumPy and Python, and remove new attributes and hooks of modules.

    Yields a function that tells whether a forward has drawn random numbers from Python or NumPy.
    """
    places = [vars(m) for m in model.modules()]
    places += [v for place in places for k, v in place.items() if k.endswith("_hooks") and isinstance(v, dict)]
    known = [(place, set(place)) for place in places]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield lambda: random.getstate() != python or not all(map(np.array_equal, np.random.get_state(), numpy))
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for now, before in known:
            for name in now.keys() - before:
                del now[name]
