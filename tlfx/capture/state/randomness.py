"""Random states of torch, Python and NumPy: a capture restores them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["Generator", "random_states_kept"]

Generator = random.Random | np.random.Generator | np.random.RandomState


@contextlib.contextmanager
def random_states_kept(generators: Iterable[Generator]) -> Iterator[Callable[[], bool]]:
    """Restore the random states of torch, Python and NumPy, and of generators, at the end of the context.

    Yields a function that tells whether numbers were drawn from Python's or NumPy's.
    """
    states = [_global_python(), _global_numpy(), *map(_state_of, generators)]
    before = [read() for read, _ in states]
    kept = [repr(state) for state in before]
    try:
        with torch.random.fork_rng():
            yield lambda: [repr(read()) for read, _ in states] != kept
    finally:
        for (_, write), state in zip(states, before, strict=True):
            write(state)


State = tuple[Callable[[], Any], Callable[[Any], None]]
"""How to read and to write a random state."""


def _global_python() -> State:
    return random.getstate, random.setstate


def _global_numpy() -> State:
    return np.random.get_state, np.random.set_state


def _state_of(generator: Generator) -> State:
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, np.random.RandomState):
        return generator.get_state, generator.set_state
    bits = generator.bit_generator
    return lambda: bits.state, lambda state: setattr(bits, "state", state)
