"""Names of state that the user wants to be ignored."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

__all__ = ["is_ignored_state"]


def is_ignored_state(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern of ``ignore_state`` matches the name of a place, or of the attribute that contains it.

    >>> is_ignored_state("blocks.0.steps", ["*.steps"]), is_ignored_state("steps", ["*.steps"])
    (True, True)
    >>> is_ignored_state("info['steps']", ["info"]), is_ignored_state("infos", ["info"])
    (True, False)
    """
    names = (name, f".{name}".replace("..", "."), name.partition("[")[0].lstrip("."))
    return any(fnmatch.fnmatchcase(n, pattern) for n in names for pattern in patterns)
