"""Random states and generators in a forward: what would draw other numbers at each call, where a graph repeats those of
its capture, is refused."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch

from tlfx.capture.callers import Refuse, caller, unless_in_torch
from tlfx.capture.state.reach import OTHERS
from tlfx.capture.surroundings import replaced

__all__ = ["refused_randomness"]

_RANDOM = (
    "reads or sets the random state of torch ({}), which a captured graph does not repeat: do it outside of the "
    "forward, in a torch.autograd.Function, or draw from a torch.Generator of the model"
)
_RANDOM_CALLS = ("manual_seed", "seed", "get_rng_state", "set_rng_state", "fork_rng")
_UNSEEDED = (
    "makes a random generator without a seed ({}), which draws other numbers at each call, where a captured graph "
    "repeats those of the capture: draw with torch's functions"
)
_ENTROPY: tuple[tuple[Any, str, str], ...] = (
    (np.random.bit_generator, "randbits", "numpy.random"),
    (random, "_urandom", "random.SystemRandom"),
    (os, "urandom", "os.urandom"),
)
"""Where generators without a seed, secrets and uuid get their entropy: owners, names, and what messages say."""


@contextlib.contextmanager
def refused_randomness(refuse: Refuse) -> Iterator[None]:
    """Refuse calls that read or set the random state of torch, and generators that are made without a seed."""
    with contextlib.ExitStack() as stack:
        for owner, name in ((o, n) for o in (torch, torch.random) for n in _RANDOM_CALLS if hasattr(o, n)):
            refused = unless_in_torch(refuse, getattr(owner, name), _RANDOM.format(f"torch.{name}"))
            stack.enter_context(replaced(owner, name, refused))
        for source, name, shown in _ENTROPY:
            drawing = _drawing(refuse, getattr(source, name), _UNSEEDED.format(shown))
            stack.enter_context(replaced(source, name, drawing))
        stack.enter_context(replaced(random.Random, "seed", _seeding(refuse)))
        yield


def _drawing(refuse: Refuse, original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        if not _is_for_torch(caller()):
            refuse(reason)
        return original(*args, **kwargs)

    return draw


def _seeding(refuse: Refuse) -> Callable[..., None]:
    original = random.Random.seed

    def seed(generator: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
        if a is None and not _is_for_torch(caller()):
            refuse(_UNSEEDED.format("random.Random"))
        original(generator, a, *args, **kwargs)

    return seed


def _is_for_torch(frame: FrameType | None) -> bool:
    """Whether torch called the function of the standard library or of NumPy whose frame is given."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in OTHERS or package == "torch":
            return package == "torch"
        frame = frame.f_back
    return True
