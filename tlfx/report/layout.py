"""Token layouts as text: the arrangement of the tokens and channels of one image in a value."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from tlfx.errors import ProvenanceError
from tlfx.propagate.maps import NONE
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.base import axis_of_ids

__all__ = ["layout", "tokens"]


def layout(value: Any) -> str:
    """Tokens and channels of a value, such as ``64 windows × 49 tokens × 3·32``.

    An axis with the channels of several tokens is written ``14×14 × (4 tokens × 96)``. A mixing weight is written as
    ``W`` and its shape for one image, a constant as its shape, and n equal values as ``n of`` the layout.
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
    """The tokens of a value without its channels; empty for a value without labels."""
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
        arrangement, channels = _parts(value)
    except ProvenanceError:
        return _joined(value.shape)
    return f"{arrangement} × {channels}" if channels else arrangement


def _parts(value: Value) -> tuple[str, str]:
    """Texts for the tokens and for the channels of a value with image content."""
    ids, where = value.ids, value.batch_axis
    windows = prod(ids.shape[where.axis : where.axis + 2])
    # heads or channels that are merged into the batch, along which labels are equal
    merged = where.outer * where.inner // windows
    axes = [(axis_of_ids(where, a), size) for a, size in enumerate(value.shape) if a != where.axis]
    varying = [(a, size) for a, size in axes if ids.shape[a] > 1]
    channels = [merged, *(size for a, size in axes if ids.shape[a] == 1)]
    side = _side_by_side(ids, *varying[-1]) if varying else 0
    if side:
        size = varying.pop()[1]
        merged_text = f"({side} tokens × {size // side})"
        others = [s for _, s in varying]
        return (_tokens(windows, others), merged_text) if varying or windows > 1 else (merged_text, "")
    return _tokens(windows, [s for _, s in varying]), "·".join(str(c) for c in channels if c > 1)


def _side_by_side(ids: Tensor, axis: int, size: int) -> int:
    """Number of tokens on an axis that holds the channels of several tokens; 0 for one token per element."""
    line = ids[tuple(slice(None) if a == axis else 0 for a in range(ids.dim()))]
    distinct = len(line[line != NONE].unique())
    return distinct if 1 < distinct < size and size % distinct == 0 else 0


def _tokens(windows: int, sizes: list[int]) -> str:
    if windows > 1 and not sizes:
        return f"{windows} tokens"
    grid = _joined(sizes) if len(sizes) > 1 else f"{sizes[0]} tokens" if sizes else "1 token"
    return f"{windows} windows × {grid}" if windows > 1 else grid


def _for_one_image(value: Value) -> list[int]:
    """Shape without the batch axis, which may also hold windows."""
    shape = list(value.shape)
    if shape and shape[0] % value.batch == 0:
        shape[0] //= value.batch
    return [s for i, s in enumerate(shape) if s > 1 or i > 0]


def _joined(shape: Any) -> str:
    return "×".join(str(s) for s in shape)
