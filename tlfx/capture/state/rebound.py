"""Functions of torch under names of users (``from torch import is_grad_enabled``): capture replaces them there, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tlfx.capture.state.containers import Container
from tlfx.capture.surroundings import replacements

__all__ = ["rebound"]


@contextlib.contextmanager
def rebound(containers: Sequence[Container]) -> Iterator[None]:
    """Put what replaces functions at present into all places that hold these functions."""
    known = replacements()
    places = [(c, key, value) for c in containers for key, value in c.items().items() if id(value) in known]
    for container, key, value in places:
        container.put(key, known[id(value)])
    try:
        yield
    finally:
        for container, key, value in places:
            container.put(key, value)
