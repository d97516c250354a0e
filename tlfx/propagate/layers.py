"""The choice of attention layers that are aligned (Table 8 of the paper)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch.fx import Node

from tlfx.errors import InputError
from tlfx.graph.nodes import is_inside, module_path

__all__ = ["LayerSelection", "count_from_first"]

Layers = tuple[str | int, ...]


class LayerSelection:
    """Numbers token-mixing attention layers in order of execution, and tells which of them are aligned."""

    def __init__(self, layers: Layers | None) -> None:
        self._layers = layers
        self._numbers: dict[Node, int] = {}
        self._matched: set[str | int] = set()

    @property
    def count(self) -> int:
        """Number of token-mixing attention layers seen so far."""
        return len(self._numbers)

    def is_aligned(self, node: Node) -> bool:
        """Whether the attention at a node is aligned: by glob patterns of modules, or by its number."""
        number = self._numbers.setdefault(node, len(self._numbers))
        if self._layers is None:
            return True
        path = module_path(node)
        matched = {x for x in self._layers if (number == x if isinstance(x, int) else is_inside(path, x))}
        self._matched |= matched
        return bool(matched)

    def check_all_match(self) -> None:
        """Raise InputError for a pattern or a number that no attention layer matches."""
        for layer in self._layers or ():
            if layer not in self._matched:
                raise InputError(self._unmatched(layer))

    def _unmatched(self, layer: str | int) -> str:
        if not self._numbers:
            return f"layers={layer!r} matches nothing: this model has no token-mixing attention layers, so leave it out"
        if isinstance(layer, int):
            return f"layers contains {layer}, but this model has {_counted(self.count)}"
        paths = list(dict.fromkeys(map(module_path, self._numbers)))
        similar = difflib.get_close_matches(layer, paths, cutoff=0.3) or paths[:3]
        near = [path for path in paths if path in similar]
        return (
            f"layers={layer!r} matches none of the {self.count} token-mixing attention layers of this model; near are "
            f"{', '.join(map(repr, near))}. A pattern such as 'blocks.[0-5]' matches all layers inside of these modules"
        )


def count_from_first(layers: Sequence[str | int], count: int) -> Layers:
    """Layers with negative numbers, which count from the last of ``count`` attention layers, made positive.

    Raises InputError for a number below −``count``.

    >>> count_from_first(["blocks.0", -1], 12)
    ('blocks.0', 11)
    """
    lowest = min((layer for layer in layers if isinstance(layer, int)), default=0)
    if lowest < -count:
        raise InputError(f"layers contains {lowest}, but this model has {_counted(count)}")
    return tuple(layer + count if isinstance(layer, int) and layer < 0 else layer for layer in layers)


def _counted(count: int) -> str:
    expected = f"numbers from {-count} to {count - 1}" if count else "no numbers, as there is no layer to choose"
    return f"{count} token-mixing attention layers: expected {expected}"
