"""Token layouts as text: how the tokens and channels of one image lie in a value."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from tlfx.errors import ProvenanceError
from tlfx.propagate.values import NONE, Role, Value

__all__ = ["layout", "tokens"]


def layout(value: Any) -> str:
    """Tokens and channels of a value, such as ``64 windows × 49 tokens × 3·32``.

    An axis that holds several tokens beside each other reads ``14×14 × (4 tokens × 96)``. Mixing weights read ``W`` and
    their shape for one image, constants the shape alone. Several values read as a number of the first.
    """
    if isinstance(value, list | tuple):
        held = [v for v in value if isinstance(v, Value)]
        texts = list(dict.fromkeys(layout(v) for v in held))
        if len(texts) == 1 and len(held) > 1:
            return f"{len(held)} of {texts[0]}"
        return " + ".join(texts[:2]) + (" + …" if len(texts) > 2 else "")
    if not isinstance(value, Value):
        return ""
    return _layout(value)


def tokens(value: Any) -> str:
    """The tokens of a value without its channels, empty where it carries no label."""
    if isinstance(value, list | tuple):
        value = next((v for v in value if isinstance(v, Value)), None)
    if not isinstance(value, Value) or not value.is_content:
        return ""
    try:
        return _parts(value)[0]
    except ProvenanceError:
        return ""


def _layout(value: Value) -> str:
    if value.is_constant:
        return _joined(value.shape) or "scalar"
    if not value.is_content:
        shape = _for_one_image(value)
        return ("W " if value.role is Role.WEIGHT else "kᵀv ") + (_joined(shape) or "scalar")
    try:
        found, channels = _parts(value)
    except ProvenanceError:
        return _joined(value.shape)
    return f"{found} × {channels}" if channels else found


def _parts(value: Value) -> tuple[str, str]:
    """Tokens and channels of content."""
    rows, where = value.ids, value.batch_axis
    windows = prod(rows.shape[where.axis : where.axis + 2])
    merged = where.outer * where.inner // windows
    axes = [(_place(a, where.axis), size) for a, size in enumerate(value.shape) if a != where.axis]
    varying = [(a, size) for a, size in axes if rows.shape[a] > 1]
    channels = [merged, *(size for a, size in axes if rows.shape[a] == 1)]
    side = _side_by_side(rows, *varying[-1]) if varying else 0
    if side:
        size = varying.pop()[1]
        beside = f"({side} tokens × {size // side})"
        return (_tokens(windows, [s for _, s in varying]), beside) if varying or windows > 1 else (beside, "")
    return _tokens(windows, [s for _, s in varying]), "·".join(str(c) for c in channels if c > 1)


def _place(axis: int, batch_axis: int) -> int:
    """Where an axis of the value stands in its rows."""
    return axis if axis < batch_axis else axis + 1


def _side_by_side(rows: Tensor, axis: int, size: int) -> int:
    """How many tokens lie beside each other on an axis, each with channels of its own; 0 for one token an element."""
    line = rows.movedim(axis, -1).reshape(-1, size)[0]
    distinct = len(line[line != NONE].unique())
    return distinct if 1 < distinct < size and size % distinct == 0 else 0


def _tokens(windows: int, sizes: list[int]) -> str:
    if windows > 1 and not sizes:
        return f"{windows} tokens"
    grid = _joined(sizes) if len(sizes) > 1 else f"{sizes[0]} tokens" if sizes else "1 token"
    return f"{windows} windows × {grid}" if windows > 1 else grid


def _for_one_image(value: Value) -> list[int]:
    """Shape without the batch, which may share an axis with windows."""
    shape = list(value.shape)
    if shape and shape[0] % value.batch == 0:
        shape[0] //= value.batch
    return [s for i, s in enumerate(shape) if s > 1 or i > 0]


def _joined(shape: Any) -> str:
    return "×".join(str(s) for s in shape)
