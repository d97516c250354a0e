"""Data-dependent movement: labels follow values by indices that the model computes at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import tree_map
from tlfx.runtime.arithmetic import TINY, label_arithmetic, with_mass
from tlfx.runtime.batch_axis import BatchAxis, merge_batch, split_batch

__all__ = ["gather_by_output", "gather_labels", "narrow", "put_samples", "scatter_labels", "select_samples"]


@label_arithmetic
def gather_labels(
    operator: Callable[..., Tensor],
    labels: Tensor,
    *args: Any,
    where: BatchAxis,
    where_out: BatchAxis | None = None,
    once: Sequence[int] = (),
) -> Tensor:
    """Data-dependent movement: labels move by the same run-time indices as the value.

    ``operator`` takes the labels in the layout of the value, one channel at a time, then ``args``; along the axes
    ``once``, one place is computed for all. The batch of the output is at ``where_out``, by default ``where``.
    """
    args = narrow(args, once)
    # indices have the axes of values, which have no label channels
    out = [operator(channel, *args) for channel in merge_batch(labels, where).unbind(-1)]
    return split_batch(torch.stack(out, -1), where_out or where).flatten(1, -2)


def gather_by_output(labels: Tensor, axis: int, outputs: Sequence[Tensor], **options: Any) -> Tensor:
    """The same along an axis, by the indices in the second output of an operator (sort, topk)."""
    return gather_labels(torch.gather, labels, axis, outputs[1], **options)


@label_arithmetic
def scatter_labels(
    operator: Callable[..., Tensor],
    labels: Tensor,
    valid: Tensor | int,
    source: Tensor,
    valid_source: Tensor | int,
    image: Tensor,
    before: Sequence[Any],
    after: Sequence[Any],
    *,
    where: BatchAxis,
    where_source: BatchAxis | None = None,
    once: Sequence[int] = (),
    aligned: bool = True,
    massed: bool = False,
    **options: Any,
) -> Tensor:
    """Data-dependent writes (token merging): the operator, called as (labels, *before, labels, *after), divided by
    itself run on ones, so that labels at one place are averaged; the image-level label where there is none.

    ``labels`` and ``source`` are labels, of which ``valid`` (one for each) marks those with content, 1 if all have;
    or values without content, ``valid`` being 0. The batch of ``labels`` and of the result is at ``where``, that of
    ``source`` at ``where_source``, by default the same. Indices have the axes of values, and so ``once`` too, if they
    are ``aligned``. ``massed`` labels have their mass as a last channel, and so has the result.
    """
    over, under = (
        _masses(x if massed else with_mass(x), v, place)
        if isinstance(v, Tensor) or v
        else _no_masses(x, image.shape[-1] + 1, once)
        for x, v, place in ((labels, valid, where), (source, valid_source, where_source or where))
    )
    before, after = narrow((tuple(before), tuple(after)), once if aligned else ())
    channels = zip(over.unbind(-1), under.unbind(-1), strict=True)
    out = torch.stack([operator(one, *before, other, *after, **options) for one, other in channels], -1)
    if massed:
        # a place that nothing is written to has the label of the image, with a negligible mass
        return split_batch(out, where).flatten(1, -2) + TINY * with_mass(image)
    mass = out[..., -1:]
    merged = split_batch(torch.cat((out[..., :-1] / mass.clamp_min(TINY), mass), -1), where).flatten(1, -2)
    return torch.where(merged[..., -1:] > TINY, merged[..., :-1], image)


def _masses(labels: Tensor, valid: Tensor | int, where: BatchAxis) -> Tensor:
    """Labels and their mass in the layout of the value, both zero where there is no content."""
    known = valid[..., None] if isinstance(valid, Tensor) else valid
    return merge_batch(labels * known, where)


def _no_masses(value: Tensor, channels: int, once: Sequence[int]) -> Tensor:
    zeros = torch.zeros_like(narrow(value, once), dtype=torch.float32)
    return zeros[..., None].expand(*zeros.shape, channels)


def select_samples(labels: Tensor, index: Tensor) -> Tensor:
    """Labels of some samples: those at an index of the batch."""
    return labels.index_select(0, index)


def put_samples(labels: Tensor, part: Tensor, index: Tensor) -> Tensor:
    """Labels of all samples, of which those at an index are replaced by those of a part."""
    return labels.index_copy(0, index, part)


def narrow(values: Any, once: Sequence[int]) -> Any:
    """Values, or values in containers, with their tensors at the first place along the axes ``once``."""

    def first(value: Any) -> Any:
        for axis in once if isinstance(value, Tensor) else ():
            value = value.narrow(axis, 0, 1)
        return value

    return tree_map(first, values) if once else values
