"""The class token: the tokens that the classifier reads, and their attention applied to unmixed labels (TransMix)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from tlfx.analysis.places import grid
from tlfx.propagate.labels import MASK, LabelTable, LabelTensor, Operand

__all__ = ["class_attention", "fixed_labels", "reached"]


def reached(table: LabelTable, ids: Tensor) -> Tensor:
    """The labels that the labels ``ids`` average, by residuals and means only: bool over all label ids of the table.

    >>> from tlfx import runtime
    >>> table = LabelTable()
    >>> pixels = table.add(runtime.pixels, shape=(4,))
    >>> mean = table.add(runtime.uniform, Operand(pixels[None, :2]), shape=(1,), elementwise=True)
    >>> reached(table, mean)
    tensor([ True,  True, False, False,  True])
    """
    averaged = torch.zeros(table.size, dtype=torch.bool)
    averaged[ids] = True
    for label in reversed(table.tensors):
        inside = averaged[label.first : label.first + label.size]
        if label.elementwise and bool(inside.any()):
            for operand in label.operands:
                averaged[operand.ids.flatten(0, len(label.shape) - 1)[inside]] = True
    return averaged


def class_attention(table: LabelTable, class_ids: Tensor, places: Tensor, images: Node) -> Tensor | None:
    """New label ids (n,): the last attention into the class tokens ``class_ids``, applied to unmixed labels.

    The attention is the model's, head by head. Its keys have the label of their region of the image instead of the
    aligned label. Keys without a position (the class token itself) have label zero; a channel of ones measures the
    attention to the other keys. ``places`` are the positions of all label ids so far
    (:func:`tlfx.analysis.places.centres`), ``images`` is the placeholder of the images. None if no attention feeds
    these labels, its queries have positions (and so are not class tokens), or its keys form no grid.
    """
    mixed = reached(table, class_ids)
    for label in table.tensors:
        if label.elementwise:
            mixed[label.first : label.first + label.size] = False
    # what is left are not means: the last of them is the last mixing that feeds the class tokens
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
    """A new label with the same function and other operands."""
    options = {"after": label.after, "kwargs": label.kwargs, "query_axis": label.query_axis}
    return table.add(label.function, *args, shape=label.shape, **options)


def _cell_of(cells: Tensor, count: int) -> Tensor:
    """Index of the cell of each of ``count`` tokens, int64; the number of cells for a token without position."""
    cell = torch.full((count,), cells.numel())
    cell[cells.flatten()] = torch.arange(cells.numel())
    return cell


def fixed_labels(mask: Tensor, cell: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (batch, tokens, K) of tokens that keep the label of their region of the image (TokenLabeling).

    ``mask`` (batch or 1, K, height, width) is averaged over each cell of a grid of ``size``. ``cell`` (tokens,) is the
    index of the cell of each token; the number of cells stands for a token without cell, whose label is zero.

    >>> mask = torch.tensor([[[[1.0, 1.0, 0.0, 1.0]]]])
    >>> fixed_labels(mask, torch.tensor([2, 0, 1]), (1, 2))
    tensor([[[0.0000],
             [1.0000],
             [0.5000]]])
    """
    cells = F.adaptive_avg_pool2d(mask.float(), size).flatten(2).transpose(1, 2)
    # the zeros behind the cells are for tokens without a cell
    return F.pad(cells, (0, 0, 0, 1))[:, cell]
