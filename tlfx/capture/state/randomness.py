"""Random states of torch, Python and NumPy: a capture restores them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Generator", "RandomState", "random_states_kept"]

Generator = random.Random | np.random.Generator | np.random.RandomState | torch.Generator


class RandomState(NamedTuple):
    """How to read and to write the state of a random generator, and what a forward does that changes it."""

    cause: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


@contextlib.contextmanager
def random_states_kept(generators: Sequence[Generator]) -> Iterator[Callable[[], RandomState | None]]:
    """Restore the random states of torch, Python and NumPy, and of generators, at the end of the context.

    Yields a function that returns the first state that has changed, except torch's own. Fake tensors draw nothing from
    a torch.Generator: its state changes if it is seeded.
    """
    states = [_global_python(), _global_numpy(), *map(_state_of, generators)]
    before = [state.read() for state in states]
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(generator.initial_seed() ^ 1)  # seeding it with the same number counts, too
    kept = [repr(state.read()) for state in states]
    try:
        with torch.random.fork_rng():
            yield lambda: next((s for s, x in zip(states, kept, strict=True) if repr(s.read()) != x), None)
    finally:
        for state, x in zip(states, before, strict=True):
            state.write(x)


_DRAWS = "draws from the random generator of Python or NumPy: use torch's instead"
_SEEDS = "seeds a torch.Generator, which an aligned call would not: seed it outside of the forward"


def _global_python() -> RandomState:
    return RandomState(_DRAWS, random.getstate, random.setstate)


def _global_numpy() -> RandomState:
    return RandomState(_DRAWS, np.random.get_state, np.random.set_state)


def _state_of(generator: Generator) -> RandomState:
    if isinstance(generator, random.Random):
        return RandomState(_DRAWS, generator.getstate, generator.setstate)
    if isinstance(generator, np.random.RandomState):
        return RandomState(_DRAWS, generator.get_state, generator.set_state)
    if isinstance(generator, torch.Generator):
        return RandomState(
            _SEEDS,
            lambda: generator.get_state().tolist(),
            lambda state: generator.set_state(torch.tensor(state, dtype=torch.uint8)),
        )
    bits = generator.bit_generator
    return RandomState(_DRAWS, lambda: bits.state, lambda state: setattr(bits, "state", state))
