"""Data-dependent movement: labels follow values by the indices that the model finds as it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tlfx.runtime.arithmetic import TINY, Split, label_arithmetic, merge_batch, split_batch, with_mass

__all__ = ["moved", "narrow", "ordered", "put"]


@label_arithmetic
def moved(
    operator: Callable[..., Tensor],
    rows: Tensor,
    *args: Any,
    split: Split,
    split_out: Split | None = None,
    once: Sequence[int] = (),
) -> Tensor:
    """Data-dependent movement: labels move by the same run-time indices as the value.

    ``operator`` takes the labels in the layout of the value, one channel at a time, then ``args``, of which one place
    is enough along the axes ``once``. The batch of what comes out lies at ``split_out``, or where it was.
    """
    args = narrow(args, once)
    out = [operator(channel, *args) for channel in merge_batch(rows, split).unbind(-1)]
    return split_batch(torch.stack(out, -1), split_out or split).flatten(1, -2)


def ordered(rows: Tensor, axis: int, outputs: Sequence[Tensor], **options: Any) -> Tensor:
    """The same along an axis, by indices that an operator found itself: its second output."""
    return moved(torch.gather, rows, axis, outputs[1], **options)


@label_arithmetic
def put(
    operator: Callable[..., Tensor],
    rows: Tensor,
    valid: Tensor | int,
    source: Tensor,
    valid_source: Tensor | int,
    image: Tensor,
    before: Sequence[Any],
    after: Sequence[Any],
    *,
    split: Split,
    once: Sequence[int] = (),
    **options: Any,
) -> Tensor:
    """Data-dependent writing (token merging): the operator, called as (labels, *before, labels, *after), over itself
    run on ones, so that labels that meet are averaged; the image-level label where there is none.

    ``rows`` and ``source`` are labels, of which ``valid`` (one for each row) tells those with content, 1 if all have;
    or values without content, ``valid`` being 0.
    """
    over, under = (
        _masses(x, v, split) if isinstance(v, Tensor) or v else _no_masses(x, image.shape[-1] + 1, once)
        for x, v in ((rows, valid), (source, valid_source))
    )
    before, after = narrow((tuple(before), tuple(after)), once)
    channels = zip(over.unbind(-1), under.unbind(-1), strict=True)
    out = torch.stack([operator(one, *before, other, *after, **options) for one, other in channels], -1)
    mass = out[..., -1:]
    merged = split_batch(torch.cat((out[..., :-1] / mass.clamp_min(TINY), mass), -1), split).flatten(1, -2)
    return torch.where(merged[..., -1:] > TINY, merged[..., :-1], image)


def _masses(rows: Tensor, valid: Tensor | int, split: Split) -> Tensor:
    """Labels and their mass in the layout of the value, both zero where there is no content."""
    known = valid[..., None] if isinstance(valid, Tensor) else valid
    return merge_batch(with_mass(rows) * known, split)


def _no_masses(value: Tensor, channels: int, once: Sequence[int]) -> Tensor:
    zeros = torch.zeros_like(narrow(value, once), dtype=torch.float32)
    return zeros[..., None].expand(*zeros.shape, channels)


def narrow(values: Any, once: Sequence[int]) -> Any:
    """Values, or values in containers, with their tensors at the first place along the axes ``once``."""

    def first(value: Any) -> Any:
        for axis in once if isinstance(value, Tensor) else ():
            value = value.narrow(axis, 0, 1)
        return value

    return tree_map(first, values) if once else values
