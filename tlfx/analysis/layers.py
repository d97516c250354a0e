"""The layers of a model: modules whose output tokens form a grid on the image, such as the blocks."""

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
    """A module whose output holds tokens, and the positions of the tokens.

    Attributes:
        path: path of the module, such as ``"blocks.6"``.
        ids: int64 (tokens,), the label id of each token.
        grid: int64 (height, width), the index of the token at each position of the image.
        others: int64 (n,), the tokens without a position: class, distillation and register tokens.
        readout: int64 (n,), the tokens that the classifier would read in this layer: the class tokens if the classifier
            of the model reads any (for a distilled model, class and distillation token), else all tokens of the grid.
    """

    path: str
    ids: Tensor
    grid: Tensor
    others: Tensor
    readout: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    @property
    def has_class_token(self) -> bool:
        """Whether the classifier reads tokens without a position on the image."""
        return bool(torch.isin(self.readout, self.others).any())


def find_layers(
    propagation: Propagation, places: Tensor, at: Sequence[str] | None = None, required: bool = True
) -> list[Layer]:
    """The layers that match glob patterns, by default the blocks with more than one token.

    Modules whose tokens form no grid are omitted. ``propagation`` must have recorded every module, ``places`` are the
    positions of all label ids (:mod:`tlfx.analysis.places`).

    Raises InputError for a pattern that matches no module, or if no matching module has tokens on a grid and layers are
    ``required``.
    """
    recorded = propagation.recorded.ids
    chosen = [p for p in blocks(propagation.operations) if p in recorded] if at is None else matching(recorded, at)
    output = next(o for o in propagation.outputs if o is not None)
    read = reached(propagation.labels, output.ids.flatten())
    layers = [_layer(path, recorded[path].flatten(), places, read) for path in chosen]
    known = [layer for layer in layers if layer is not None and (at is not None or layer.grid.numel() > 1)]
    if not known and required:
        raise InputError(
            f"the tokens of {', '.join(chosen[:3]) or 'this model'} form no grid on the image; choose modules that "
            "return all tokens of an image, such as whole blocks"
        )
    return known


def _layer(path: str, ids: Tensor, places: Tensor, read: Tensor) -> Layer | None:
    cells = grid(places[ids])
    if cells is None:
        return None
    nowhere = places[ids].isnan().any(1)
    class_tokens = (nowhere & read[ids]).nonzero().flatten()
    readout = class_tokens if len(class_tokens) else cells.flatten()
    return Layer(path, ids, cells, nowhere.nonzero().flatten(), readout)


def blocks(operations: Mapping[Node, Operation]) -> list[str]:
    """Paths of a model's blocks, in order: the modules that contain residual connections.

    If such a module is inside another one, the outer one is the block, unless it contains several. In a model without
    residual connections, the modules that mix or aggregate tokens are the blocks.
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
    """The ``paths`` that match any of the glob patterns, in the order of ``paths``.

    Raises InputError for a pattern without match; the message lists similar paths.

    >>> matching(["blocks.0", "blocks.1", "norm"], ["blocks.*"])
    ['blocks.0', 'blocks.1']
    """
    known = list(paths)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in known):
            near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.5) or known[:5]
            raise InputError(f"no module with tokens matches {pattern!r}; similar names are {', '.join(near)}")
    return [path for path in known if any(fnmatchcase(path, pattern) for pattern in patterns)]
