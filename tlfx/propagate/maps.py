"""Maps: the sample and the label that every element of a value belongs to.

A map is an int64 tensor with as many axes as the value, of size 1 along every axis along which it is constant.
Its elements are ``label id * batch + sample``, or ``NONE`` for an element that holds no image content. Label ids count
the labels of all label tensors of a graph, so that a value may hold labels of several of them (a concatenation, say).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlfx.errors import ProvenanceError
from tlfx.runtime import BatchAxis, merge_batch, split_batch

__all__ = [
    "IMAGE",
    "NONE",
    "compact",
    "distinct",
    "fill_none",
    "fill_tokens",
    "find_batch_axis",
    "ids_of_sample",
    "image_map",
    "map_of_ids",
]

NONE = -1
"""Map element of padding and other elements without image content."""
IMAGE = 0
"""Id of the image-level share λ, the label of tokens without image content (eq. 5)."""


def compact(full: Tensor) -> Tensor:
    """A map narrowed to size 1 along each axis along which it is constant.

    >>> compact(torch.tensor([[1, 1, 1], [2, 2, 2]])).shape
    torch.Size([2, 1])
    """
    for axis, size in enumerate(full.shape):
        # an axis that was expanded has stride 0: constant without a look at its elements
        if size > 1 and (full.stride(axis) == 0 or _is_constant(full, axis)):
            full = full.narrow(axis, 0, 1)
    return full


def _is_constant(full: Tensor, axis: int) -> bool:
    line = full[tuple(slice(None) if a == axis else slice(1) for a in range(full.dim()))]  # decides for most axes
    return all(bool((part == part.narrow(axis, 0, 1)).all()) for part in (line, full))


def distinct(full: Tensor) -> Tensor | None:
    """A map of which each element occurs once, if ``full`` repeats that along axes or parts of axes, as ``expand``,
    ``repeat`` and interpolation to a multiple of the size do; None for any other map.

    >>> distinct(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]))
    tensor([[1, 2]])
    """
    if bool((full == NONE).any()):
        return None
    counts = full.unique(return_counts=True)[1]
    # most other maps, such as those of windows that overlap, repeat some elements more often than others
    if len(counts) == full.numel() or not bool((counts == counts[0]).all()):
        return None
    axis = 0
    while axis < full.dim():
        part = _without_repeats(full, axis)
        if part is None:
            axis += 1
        else:
            full = part
    return full if full.numel() == len(counts) else None


def _without_repeats(full: Tensor, axis: int) -> Tensor | None:
    """A map without one part of an axis along which it is constant; None if there is no such part."""
    size = full.shape[axis]
    for times in (n for n in range(2, size + 1) if size % n == 0):
        for inner in (n for n in range(1, size // times + 1) if size // times % n == 0):
            split: Tensor = full.unflatten(axis, (-1, times, inner))
            once = split.narrow(axis + 1, 0, 1)
            if bool((split == once).all()):
                return once.flatten(axis, axis + 2)
    return None


def find_batch_axis(content: Tensor, batch: int) -> BatchAxis:
    """The axis of a compact map along which the sample changes, as outer · batch · inner."""
    sample = torch.where(content == NONE, NONE, content % batch)
    for axis in range(content.dim()):
        along = sample.movedim(axis, 0).reshape(content.shape[axis], -1)
        # the sample at each place of the axis: NONE is less than any sample
        here = along.amax(1)
        if not bool((torch.where(along == NONE, here[:, None], along) == here[:, None]).all()):
            continue
        where = _split_of(here, batch, axis)
        if where is not None:
            return where
    raise ProvenanceError(
        f"a value of shape {tuple(content.shape)} mixes the samples of a batch, or has lost its batch axis; "
        "labels belong to one sample each. Align the part of the model before it instead."
    )


def _split_of(here: Tensor, batch: int, axis: int) -> BatchAxis | None:
    length = len(here)
    known = here != NONE
    for inner in range(1, length // batch + 1):
        if length % (inner * batch):
            continue
        # the samples along an axis outer · batch · inner
        pattern = torch.arange(length) // inner % batch
        if bool((here[known] == pattern[known]).all()) and len(pattern[known].unique()) == batch:
            return BatchAxis(axis, length // (inner * batch), inner)
    return None


def ids_of_sample(content: Tensor, batch: int, where: BatchAxis) -> Tensor:
    """Label ids of the first sample of a map, its batch axis replaced by the two axes (outer, inner).

    Raises ProvenanceError if the map permutes the samples of the batch, or lays them out differently.
    """
    by_sample = split_batch(content, where)
    if len(by_sample) != batch:
        raise ProvenanceError(
            f"a value of shape {tuple(content.shape)} has lost its batch axis; labels belong to one sample each. "
            "Align the part of the model before it instead."
        )
    samples = torch.arange(batch).view(-1, *[1] * content.dim(), 1)
    if not bool(((by_sample == NONE) | (by_sample % batch == samples)).all()):
        raise ProvenanceError(
            "an operator permutes the samples of a batch, so that samples would be mixed; "
            "labels belong to one sample each. Align the part of the model before it instead."
        )
    ids = torch.where(by_sample == NONE, NONE, by_sample.div(batch, rounding_mode="floor"))
    if not bool((ids == ids[:1]).all()):
        raise ProvenanceError(
            "the samples of a batch are laid out differently, so that a label would depend on its place in the batch; "
            "labels belong to one sample each. Align the part of the model before it instead."
        )
    return compact(ids[0])


def map_of_ids(ids: Tensor, batch: int, where: BatchAxis) -> Tensor:
    """The inverse of :func:`ids_of_sample`: a compact map from the label ids of one sample."""
    shape = list(ids.shape)
    shape[where.axis : where.axis + 2] = [where.outer, where.inner]
    samples = torch.arange(batch).view(-1, *[1] * ids.dim())
    ids = ids.expand(shape)
    return merge_batch(torch.where(ids == NONE, NONE, ids * batch + samples), where)


def fill_none(ids: Tensor, axes: Sequence[int]) -> Tensor:
    """Ids in which elements without content take the one id that they meet along ``axes``, if there is just one."""
    if not axes or not bool((ids == NONE).any()):
        return ids
    # a single id is the greatest, since NONE is -1
    filled = torch.where(ids == NONE, ids.amax(tuple(axes), keepdim=True), ids)
    constant = all(filled.shape[a] == 1 or _is_constant(filled, a) for a in axes)
    return compact(filled) if constant else ids


def fill_tokens(content: Tensor, batch: int) -> Tensor:
    """A map in which tokens without content, among tokens with content, have the image-level label (eq. 5).

    Tokens differ in their ids: elements that share the id of others along an axis are channels of one token.
    """
    channels = [a for a in range(content.dim()) if content.shape[a] > 1 and _is_constant_but_none(content, a)]
    empty = content == NONE
    if not bool(empty.any()):
        return content
    # a token is without content only if all of its channels are
    for axis in channels:
        empty = empty.all(axis, keepdim=True)
    where = find_batch_axis(content, batch)
    return compact(torch.where(empty, image_map(content.shape, batch, where), content))


def image_map(shape: Sequence[int], batch: int, where: BatchAxis) -> Tensor:
    """The compact map of a value that has the image-level label everywhere, its batch at ``where``."""
    sample = torch.arange(shape[where.axis]) // where.inner % batch
    return IMAGE * batch + sample.view([-1 if axis == where.axis else 1 for axis in range(len(shape))])


def _is_constant_but_none(content: Tensor, axis: int) -> bool:
    return bool(((content == NONE) | (content == content.amax(axis, keepdim=True))).all())
