"""Conversion of a state_dict between layouts: identified by its names, read, checked, and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from checkpoints.forms import FORMS, relative_position_index
from checkpoints.structure import Place, check_shapes, missing
from checkpoints.tables import Table, tables
from tlfx.errors import ModelError, named

__all__ = ["LAYOUTS", "Source", "identify", "write"]

LAYOUTS = tuple(dict.fromkeys(layout for table in tables().values() for layout in table.layouts))


@dataclass
class Source:
    """A state_dict, read as one layout of one family.

    weights: its tensors by their place. keys: their names in the state_dict. unexpected: names that the layout does not
    have. missing: names that the model lacks.
    """

    table: Table
    layout: str
    weights: dict[Place, Tensor] = field(default_factory=dict)
    keys: dict[Place, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def faults(self) -> str:
        """What does not fit, for a message; empty if all does."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected}
        return "; ".join(f"{kind}: {named(names, most=3)}" for kind, names in kinds.items() if names)


def identify(state: Mapping[str, Any], layout: str | None = None) -> Source:
    """The family and layout of a state_dict, and its tensors; only this layout is tried if it is given.

    Names may lack the prefix of the layout, and may have "backbone." before it. Raises ModelError if names or shapes
    fit no table; the message names what does not fit the nearest one.
    """
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError("the checkpoint holds no state_dict: names and tensors")
    tried = [
        _read(table, name, state) for table in tables().values() for name in table.layouts if layout in (None, name)
    ]
    source = min(tried, key=lambda s: len(s.unexpected) + len(s.missing))
    if source.faults:
        _refuse_pvt_v1(state)
        kind = "known layout" if layout is None else f"model in the layout {layout}"
        raise ModelError(
            f"the checkpoint has the names of no {kind}; the nearest is {source.table.family} in the layout "
            f"{source.layout}: {source.faults}"
        )
    check_shapes(source.table, source.weights, source.keys)
    _check_indices(source)
    return source


def _refuse_pvt_v1(state: Mapping[str, Any]) -> None:
    """PVT v1 has a position embedding in each stage, PVT v2 has none."""
    marks = ("pos_embed1", "patch_embeddings.0.position_embeddings")  # official, Hugging Face
    if fused := [key for key in state if key.endswith(marks)]:
        raise ModelError(
            f"the checkpoint is a PVT v1 ({fused[0]}), which is not supported; expected PVT v2, DeiT or Swin. timm "
            "has no PVT v1 either; Hugging Face's is PvtForImageClassification"
        )


def _read(table: Table, layout: str, state: Mapping[str, Tensor]) -> Source:
    source = Source(table, layout)
    for key, tensor in state.items():
        bare = key.removeprefix("backbone.")  # of segmentors and detectors
        if not any(_take(source, name, key, tensor) for name in (key, bare, table.prefixes[layout] + bare)):
            source.unexpected.append(key)
    source.missing = missing(table, source.weights, layout)
    return source


def _take(source: Source, name: str, key: str, tensor: Tensor) -> bool:
    """Read the places that a name stands for; False if there are none."""
    cells = source.table.find(source.layout, name)
    for number, cell, numbers in cells:
        if source.table.rows[number].when == "never":
            continue
        if tensor.dim() == 0 or tensor.shape[0] % cell.parts:
            raise ModelError(
                f"{key} is {tuple(tensor.shape)}, expected a first axis that is a multiple of {cell.parts}"
            )
        part = tensor.chunk(cell.parts)[cell.part] if cell.parts > 1 else tensor
        place = Place(number, numbers.get("s", 0), numbers.get("b", 0))
        if place in source.weights:
            raise ModelError(f"{source.keys[place]} and {key} are the same tensor of {source.table.family}")
        source.weights[place], source.keys[place] = FORMS[cell.form][0](part, key), key
    return bool(cells)


def _check_indices(source: Source) -> None:
    """Raise ModelError for an index of relative positions other than the one that all layouts use."""
    for place, index in source.weights.items():
        if source.table.rows[place.row].when == "index":
            expected = _index(source, place)
            if not torch.equal(index, expected):
                raise ModelError(f"{source.keys[place]} has another order than that of Swin in any layout")


def _index(source: Source, place: Place) -> Tensor:
    """The index at a place, from the table of the same block."""
    block = source.table.rows[place.row].name.removesuffix("index")
    row = next(i for i, row in enumerate(source.table.rows) if row.name == f"{block}table")
    table = place._replace(row=row)
    return relative_position_index(source.weights[table], source.keys[table])


def write(source: Source, layout: str, prefix: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """A state_dict in another layout, and the names of tensors that it leaves out: those of the classifier.

    prefix: of all names, instead of that of the layout. Raises ModelError if the family does not have the layout, or
    the layout cannot hold the model.
    """
    table = source.table
    if layout not in table.layouts:
        raise ModelError(f"{table.family} has no layout {layout}; expected one of {', '.join(table.layouts)}")
    parts, left_out = _parts(source, layout)
    written = {_prefixed(key, table.prefixes[layout], prefix): _joined(key, tensors) for key, tensors in parts.items()}
    return written, left_out


def _parts(source: Source, layout: str) -> tuple[dict[str, dict[int, tuple[int, Tensor]]], list[str]]:
    """The parts of each name, by their number, with the number of all; and the names that the layout leaves out."""
    parts: dict[str, dict[int, tuple[int, Tensor]]] = {}
    left_out = []
    for place, tensor in {**source.weights, **_indices(source)}.items():
        row = source.table.rows[place.row]
        cell = row.cells.get(layout)
        if cell is not None:
            key = cell.key(place.numbers)
            parts.setdefault(key, {})[cell.part] = cell.parts, FORMS[cell.form][1](tensor, source.keys.get(place, key))
        elif row.when == "head":
            left_out.append(source.keys[place])
    return parts, left_out


def _indices(source: Source) -> dict[Place, Tensor]:
    """The indices of relative positions of all blocks."""
    rows = source.table.rows
    indices = [number for number, row in enumerate(rows) if row.when == "index"]
    tables = [place for place in source.weights if rows[place.row].name.endswith("attn.table")]
    made = (place._replace(row=number) for number in indices for place in tables)
    return {place: _index(source, place) for place in made}


def _joined(key: str, parts: Mapping[int, tuple[int, Tensor]]) -> Tensor:
    """The whole of all parts, in memory of its own."""
    count = next(iter(parts.values()))[0]
    if len(parts) < count:
        raise ModelError(
            f"{key} is made of {count} tensors (query, key and value), but the checkpoint has {len(parts)}"
        )
    return torch.cat([parts[number][1] for number in range(count)]) if count > 1 else parts[0][1].clone()


def _prefixed(key: str, own: str, prefix: str | None) -> str:
    return key if prefix is None else prefix + key.removeprefix(own)
