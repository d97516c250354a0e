"""What the weights of a model have to be: none of its tensors missing, and shapes that fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from checkpoints.tables import Row, Table, filled
from tlfx.errors import ModelError

__all__ = ["Place", "Weights", "check_shapes", "missing"]


class Place(NamedTuple):
    """A tensor of a model: the number of its row in the table, its stage and its block, 0 if it has none."""

    row: int
    stage: int = 0
    block: int = 0

    @property
    def numbers(self) -> dict[str, int]:
        """As :data:`tables.Numbers`."""
        return {"s": self.stage, "b": self.block}


Weights = Mapping[Place, Tensor]


def missing(table: Table, weights: Weights, layout: str) -> list[str]:
    """Names in a layout of tensors that the model lacks; its stages and blocks are those that a tensor belongs to."""
    blocks = _blocks(table, weights)
    lacking: dict[str, None] = {}
    for number, row in enumerate(table.rows):
        if layout in row.cells and row.when in ("always", "between", "maybe"):
            places = _lacking(number, row, weights, blocks)
            lacking.update(dict.fromkeys(row.cells[layout].key(place.numbers) for place in places))
    return list(lacking)


def _lacking(number: int, row: Row, weights: Weights, blocks: list[int]) -> Iterator[Place]:
    stages = range(len(blocks) - 1 if row.when == "between" else len(blocks) if row.letters else 1)
    for stage in stages:
        places = [Place(number, stage, block) for block in range(blocks[stage] if "b" in row.letters else 1)]
        absent = [place for place in places if place not in weights]
        if row.when != "maybe" or len(absent) < len(places):
            yield from absent


def _blocks(table: Table, weights: Weights) -> list[int]:
    """The number of blocks of each stage, at least one; a model without stages has one."""
    counts: dict[int, int] = {}
    for row, stage, block in weights:
        if "b" in table.rows[row].letters:
            counts[stage] = max(counts.get(stage, 1), block + 1)
    return [counts.get(stage, 1) for stage in range(max(counts, default=0) + 1)]


def check_shapes(table: Table, weights: Weights, keys: Mapping[Place, str]) -> None:
    """Raise ModelError for a tensor whose shape contradicts its row, or that of another tensor.

    keys: names for messages.
    """
    last = len(_blocks(table, weights)) - 1
    sizes: dict[str, tuple[int, str]] = {}  # of each name of a size, and the key that it was first seen in
    for place, tensor in weights.items():
        expected = [filled(part, place.numbers).replace("{S}", str(last)) for part in table.rows[place.row].shape]
        shape, key = tuple(tensor.shape), keys[place]
        if len(shape) != len(expected):
            raise ModelError(f"{key} is {shape}, expected {len(expected)} axes ({', '.join(expected)})")
        for size, part in zip(shape, expected, strict=True):
            _check_size(size, part, sizes, key, shape)


def _check_size(size: int, part: str, sizes: dict[str, tuple[int, str]], key: str, shape: tuple[int, ...]) -> None:
    factor, _, name = part.rpartition("*")
    if part == "*":
        return
    if part.isdigit():
        known, source = int(part), "every model of this kind"
    else:
        share = size // int(factor or 1)
        known, source = sizes.setdefault(name, (share, key))
        known *= int(factor or 1)
    if size != known:
        raise ModelError(f"{key} is {shape}, which does not fit {source}: expected {known} in place of {size}")
