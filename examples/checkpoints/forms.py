"""Other forms of a tensor in a layout, and the index of relative positions, which is computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tlfx.errors import ModelError

__all__ = ["FORMS", "relative_position_index"]


def _keep(tensor: Tensor, key: str) -> Tensor:
    return tensor


def _to_conv(tensor: Tensor, key: str) -> Tensor:
    """A linear layer as a 1×1 convolution."""
    return tensor[..., None, None] if tensor.dim() == 2 else tensor


def _from_conv(tensor: Tensor, key: str) -> Tensor:
    if tensor.dim() == 4 and tensor.shape[2:] != (1, 1):
        raise ModelError(f"{key} is {tuple(tensor.shape)}, expected a 1×1 convolution")
    return tensor[..., 0, 0] if tensor.dim() == 4 else tensor


def _to_unfold(tensor: Tensor, key: str) -> Tensor:
    """The last axis from the order (column, row, channel) of patch merging to (channel, row, column) of nn.Unfold."""
    _check_patches(tensor, key)
    patches: Tensor = tensor.unflatten(-1, (2, 2, -1))
    return patches.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)


def _from_unfold(tensor: Tensor, key: str) -> Tensor:
    _check_patches(tensor, key)
    channels: Tensor = tensor.unflatten(-1, (-1, 2, 2))
    return channels.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)


def _check_patches(tensor: Tensor, key: str) -> None:
    if tensor.dim() == 0 or tensor.shape[-1] % 4:
        raise ModelError(f"{key} is {tuple(tensor.shape)}, expected a multiple of 4 on its last axis: merged patches")


def _strided(tensor: Tensor, key: str) -> Tensor:
    if tensor.shape[-1] == 1:
        raise ModelError(
            f"{key} is a 1×1 convolution, that of linear attention (pvt_v2_b2_li), which mmdet's backbone does not "
            "have: it would compute something else"
        )
    return tensor


FORMS = {
    "": (_keep, _keep),
    "conv": (_from_conv, _to_conv),
    "unfold": (_from_unfold, _to_unfold),
    "strided": (_keep, _strided),
}
"""How a form is read and how it is written, by its name; both are given the tensor and its name for messages."""


def relative_position_index(table: Tensor, key: str) -> Tensor:
    """The row of a table ((2w − 1)², heads) for each pair of the w² places in a window, int64 (w², w²).

    >>> relative_position_index(torch.zeros(9, 1), "table")
    tensor([[4, 3, 1, 0],
            [5, 4, 2, 1],
            [7, 6, 4, 3],
            [8, 7, 5, 4]])
    """
    side = math.isqrt(table.shape[0])
    if side**2 != table.shape[0] or side % 2 == 0:
        raise ModelError(f"{key} is {tuple(table.shape)}, expected ((2w − 1)², heads) for square windows of side w")
    window = (side + 1) // 2
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    place = (row * side + column).flatten()
    return place[:, None] - place[None, :] + (window - 1) * (side + 1)
