"""The layers of a model: modules whose outputs hold tokens that lie on the image, among them the model's blocks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.analysis.classtoken import reached
from tlfx.analysis.places import grid
from tlfx.errors import InputError
from tlfx.graph.nodes import module_path
from tlfx.operations import Operation
from tlfx.propagate.propagator import Propagation

__all__ = ["Layer", "blocks", "find_layers"]

MIXING = (Operation.SPATIAL_MIX, Operation.AGGREGATION)


@dataclass(frozen=True, eq=False)
class Layer:
    """A module whose output holds tokens, and which of them lie where.

    Attributes:
        path: of the module, such as ``"blocks.6"``.
        rows: int64 (tokens,), the label row of each token.
        grid: int64 (height, width), the token at each place of the image.
        others: int64 (n,), the tokens that lie nowhere: class, distillation and register tokens.
        readout: int64 (n,), the tokens that the classifier would read here: the class tokens if it reads such in the
            end (the class and the distillation token of a distilled model, say), else all of the grid.
    """

    path: str
    rows: Tensor
    grid: Tensor
    others: Tensor
    readout: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    @property
    def has_class_token(self) -> bool:
        """Whether the classifier reads tokens that lie nowhere on the image."""
        return bool(torch.isin(self.readout, self.others).any())


def find_layers(found: Propagation, places: Tensor, at: Sequence[str] | None = None) -> list[Layer]:
    """The layers that glob patterns name, by default the blocks with more than one token; those whose tokens form no
    grid are left out.

    ``found`` has recorded every module, ``places`` are those of all label rows (:mod:`tlfx.analysis.places`).

    Raises InputError for a pattern that fits no module, or if the tokens of all that fit lie on no grid.
    """
    recorded = found.recorded.ids
    chosen = [p for p in blocks(found.operations) if p in recorded] if at is None else matching(recorded, at)
    output = next(o for o in found.outputs if o is not None)
    read = reached(found.labels, output.ids.flatten())
    layers = [_layer(path, recorded[path].flatten(), places, read) for path in chosen]
    known = [layer for layer in layers if layer is not None and (at is not None or layer.grid.numel() > 1)]
    if not known:
        raise InputError(
            f"the tokens of {', '.join(chosen[:3]) or 'this model'} lie on no grid of the image; choose modules that "
            "return all tokens of an image, such as whole blocks"
        )
    return known


def _layer(path: str, rows: Tensor, places: Tensor, read: Tensor) -> Layer | None:
    cells = grid(places[rows])
    if cells is None:
        return None
    nowhere = places[rows].isnan().any(1)
    class_tokens = (nowhere & read[rows]).nonzero().flatten()
    readout = class_tokens if len(class_tokens) else cells.flatten()
    return Layer(path, rows, cells, nowhere.nonzero().flatten(), readout)


def blocks(operations: Mapping[Node, Operation]) -> list[str]:
    """Paths of a model's blocks, in order: the modules that residual connections lie in.

    Where such a module lies in another, the outer one is the block, unless it holds several. A model without residual
    connections has for blocks the modules that mix or aggregate tokens.
    """
    residual = _holders(operations, (Operation.RESIDUAL,))
    holding = {p: [q for q in residual if q.startswith(f"{p}.")] for p in residual}
    outer = [p for p in residual if len(holding[p]) < 2]
    inner = {q for p in outer for q in holding[p]}
    return [p for p in outer if p not in inner] or _holders(operations, MIXING)


def _holders(operations: Mapping[Node, Operation], kinds: Sequence[Operation]) -> list[str]:
    paths = (module_path(n).partition("@")[0] for n, operation in operations.items() if operation in kinds)
    return [p for p in dict.fromkeys(paths) if p]


def matching(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of ``paths`` that any of the glob patterns fits, in their own order.

    Raises InputError for a pattern that fits none, naming near ones.

    >>> matching(["blocks.0", "blocks.1", "norm"], ["blocks.*"])
    ['blocks.0', 'blocks.1']
    """
    known = list(paths)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in known):
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.5) or known[:5]
            raise InputError(f"no module with tokens is called {pattern!r}; near it are {', '.join(near)}")
    return [path for path in known if any(fnmatchcase(path, pattern) for pattern in patterns)]
