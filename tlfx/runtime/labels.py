"""Labels at the start and at the end, labels picked from them, and labels averaged one by one.

What only picks labels has no arithmetic, and so does not leave autograd and autocast, which would double its time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlfx.runtime.arithmetic import averaged, label_arithmetic
from tlfx.runtime.batch_axis import BatchAxis, merge_batch

__all__ = ["average", "gather", "output", "pixels", "positions", "scan", "share", "spread", "uniform", "view"]


@label_arithmetic
def pixels(mask: Tensor, images: Tensor, frames_first: bool = False) -> Tensor:
    """Start (eq. 5): one label for each pixel, from a mask (batch or 1, channels, *size) of shares; one for all samples
    if they share a mask. With ``frames_first``, images are video (batch, frames, channels, height, width)."""
    missing = images.dim() - mask.dim()
    # axes that the mask lacks, such as that of frames, come before height and width: all frames share the mask
    mask = mask.float().reshape(*mask.shape[:2], *[1] * missing, *mask.shape[2:])
    return mask.expand(-1, -1, *positions(images.shape, frames_first)).flatten(2).transpose(1, 2)


def positions(shape: Sequence[int], frames_first: bool = False) -> tuple[int, ...]:
    """Lengths of the axes of pixels: those of images but for the batch and the channels.

    >>> positions((2, 8, 3, 32, 32), frames_first=True)
    (8, 32, 32)
    """
    return (shape[1], *shape[3:]) if frames_first else tuple(shape[2:])


@label_arithmetic
def share(mask: Tensor, images: Tensor, frames_first: bool = False) -> Tensor:
    """The image-level share λ, one label: that of tokens without image content (eq. 5)."""
    return pixels(mask, images, frames_first).mean(1, keepdim=True)


def spread(labels: Tensor, images: Tensor) -> Tensor:
    """Labels of a mask that all samples share, for each of them."""
    return labels.expand(images.shape[0], -1, -1)


def view(label: Tensor, sizes: Sequence[int], strides: Sequence[int], first: int, shape: Sequence[int]) -> Tensor:
    """Labels at regular distances, in a shape: a view of ``sizes`` and ``strides`` (in labels) from the ``first`` on,
    or a copy without an index where axes of windows are merged."""
    batch, step, channel = label.stride()
    steps = (batch, *(stride * step for stride in strides), channel)
    # without a given offset, as_strided starts where the sliced tensor starts
    strided = (label[:, first:] if first else label).as_strided((len(label), *sizes, label.shape[-1]), steps)
    return strided.reshape(len(label), *shape, label.shape[-1])


def gather(labels: Sequence[Tensor], index: Tensor | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """Labels of one or several label tensors, all or those at ``index``, in a shape."""
    label = labels[0] if len(labels) == 1 else torch.cat(tuple(labels), 1)
    if index is not None:
        return label[:, index]
    return label if shape is None else label.reshape(label.shape[0], *shape, label.shape[-1])


@label_arithmetic
def average(one: Tensor, other: Tensor) -> Tensor:
    """Residual connection, Y ← Norm(Y + g(Y)) (eq. 11), and products of two full values."""
    return averaged(other, one)


@label_arithmetic
def uniform(labels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Aggregation, Y ← Norm(Σ Yᵢ): labels (batch, out, in, channels) averaged over ``in``, weighted by how often each
    occurs (``counts``, of shape (in,) or (out, in))."""
    if counts is None:
        return labels.mean(2)
    weights = counts / counts.sum(-1, keepdim=True)
    return (labels * weights[..., None]).sum(2)


@label_arithmetic
def scan(labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """A recurrence: labels (batch, lead, steps, channels), each step uniform over the steps up to it, of which
    ``valid`` (lead, steps) marks those with content."""
    if valid is not None:
        mass = valid[..., None]
        return ((labels * mass).cumsum(2) / mass.cumsum(1).clamp_min(1)).flatten(1, 2)
    steps = torch.arange(1, labels.shape[2] + 1, device=labels.device, dtype=labels.dtype)
    return (labels.cumsum(2) / steps[:, None]).flatten(1, 2)


@label_arithmetic
def output(labels: Tensor, where: BatchAxis) -> Tensor:
    """Labels of an output, its batch merged back to the place it has in the output; channels stay last."""
    return merge_batch(labels, where)
