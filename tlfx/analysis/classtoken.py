"""The class token: which tokens the classifier reads, and what their attention makes of labels that stay in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from tlfx.analysis.places import grid
from tlfx.propagate.labels import MASK, LabelTable, LabelTensor, Operand

__all__ = ["class_attention", "fixed_labels", "reached"]


def reached(table: LabelTable, rows: Tensor) -> Tensor:
    """Which label rows ``rows`` are averages of, through skip paths and means alone: bool (all rows of the table).

    >>> from tlfx import runtime
    >>> table = LabelTable()
    >>> pixels = table.add(runtime.pixels, shape=(4,))
    >>> mean = table.add(runtime.uniform, Operand(pixels[None, :2]), shape=(1,), elementwise=True)
    >>> reached(table, mean)
    tensor([ True,  True, False, False,  True])
    """
    found = torch.zeros(table.size, dtype=torch.bool)
    found[rows] = True
    for label in reversed(table.tensors):
        inside = found[label.first : label.first + label.size]
        if label.elementwise and bool(inside.any()):
            for operand in label.operands:
                found[operand.ids.flatten(0, len(label.shape) - 1)[inside]] = True
    return found


def class_attention(table: LabelTable, rows: Tensor, places: Tensor, images: Node) -> Tensor | None:
    """New rows (n,): the attention that came last into the class tokens ``rows``, on labels that stay where they were.

    The attention is that of the model, head by head; its keys have the label of their own part of the image instead of
    the aligned one, and those that lie nowhere (the class token itself) count nothing: a channel of ones tells how much
    the others do. ``places`` are those of all rows before (:func:`tlfx.analysis.places.centres`), ``images`` is the
    placeholder of the images. None if no attention goes into these rows, its queries lie on the image and so are no
    class tokens, or its keys form no grid.
    """
    mixed = reached(table, rows)
    for label in table.tensors:
        if label.elementwise:
            mixed[label.first : label.first + label.size] = False
    latest = int(mixed.nonzero().max())
    label = table.tensors[int(table.owners(torch.tensor([latest])))]
    queries = mixed[label.first : label.first + label.size].nonzero().flatten()
    if label.query_axis is None or not bool(places[label.first + queries].isnan().all()):
        return None
    keys = label.operands[0].ids
    cells = grid(places[keys.flatten()])
    if cells is None:
        return None
    fixed = table.add(
        fixed_labels, MASK, _cell_of(cells, keys.numel()), tuple(cells.shape), shape=keys.shape, after=images
    )
    args = tuple(Operand(fixed) if isinstance(a, Operand) else a for a in label.args)
    ids = _again(table, label, args)
    return ids.flatten()[queries]


def _again(table: LabelTable, label: LabelTensor, args: tuple[object, ...]) -> Tensor:
    """The same label of other operands."""
    options = {"after": label.after, "kwargs": label.kwargs, "query_axis": label.query_axis}
    return table.add(label.function, *args, shape=label.shape, **options)


def _cell_of(cells: Tensor, count: int) -> Tensor:
    """Cell of each of ``count`` tokens, int64; one more than there are for a token that lies nowhere."""
    found = torch.full((count,), cells.numel())
    found[cells.flatten()] = torch.arange(cells.numel())
    return found


def fixed_labels(mask: Tensor, cell: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (batch, tokens, K) of tokens that keep the label of their own part of the image (TokenLabeling).

    ``mask`` (batch or 1, K, height, width) is averaged over each cell of a grid of ``size``; ``cell`` (tokens,) says
    which one each token has, one more than there are for none: its label is zero.

    >>> mask = torch.tensor([[[[1.0, 1.0, 0.0, 1.0]]]])
    >>> fixed_labels(mask, torch.tensor([2, 0, 1]), (1, 2))
    tensor([[[0.0000],
             [1.0000],
             [0.5000]]])
    """
    cells = F.adaptive_avg_pool2d(mask.float(), size).flatten(2).transpose(1, 2)
    return F.pad(cells, (0, 0, 0, 1))[:, cell]
