"""Normalisation layers: statistics leave every label where it is (Table 10: point-wise transformation)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from rule_harness import check, tokens, unchanged
from torch import Tensor, nn

from tlfx import Operation

SIZE = (4, 3, 4)
LAYERS: dict[str, nn.Module] = {
    "batch_norm": nn.BatchNorm2d(4),
    "batch_norm in evaluation": nn.BatchNorm2d(4).eval(),
    "batch_norm without statistics": nn.BatchNorm2d(4, track_running_stats=False, affine=False),
    "layer_norm of everything": nn.LayerNorm(SIZE),
    "layer_norm of rows": nn.LayerNorm(4, elementwise_affine=False),
    "group_norm": nn.GroupNorm(2, 4),
    "group_norm of all channels": nn.GroupNorm(1, 4),
    "instance_norm": nn.InstanceNorm2d(4, affine=True),
    "instance_norm with statistics": nn.InstanceNorm2d(4, track_running_stats=True),
    "rms_norm": nn.RMSNorm(4),
    "local response": nn.LocalResponseNorm(3),
}
ALIKE = {"batch_norm without statistics", "layer_norm of rows", "group_norm of all channels", "instance_norm"}
"""Like another of these; they are tested by ``make slow``."""


@pytest.mark.parametrize("name", slow_except(LAYERS.keys() - ALIKE, LAYERS))
def test_normalisation_of_a_map(name: str) -> None:
    operation = name.split(" ")[0]
    expected = {operation: Operation.POINTWISE} if operation.endswith("norm") else {}
    check(lambda x, layer: layer(x), unchanged, SIZE, expected, layer=LAYERS[name])


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.RMSNorm(4), nn.BatchNorm1d(12)], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)], ids=["batch_first", "batch_second"])
def test_normalisation_of_tokens(layer: nn.Module, order: tuple[int, ...]) -> None:
    if isinstance(layer, nn.BatchNorm1d) and order[0] != 0:
        layer = nn.LayerNorm(4, bias=False)
    check(
        lambda x, layer: layer(tokens(x).permute(order)),
        lambda y, x: tokens(y).permute(order),
        SIZE,
        layer=layer,
    )


NATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "native_layer_norm": lambda x: torch.native_layer_norm(x, [4], None, None, 1e-5)[0],
    "native_group_norm": lambda x: torch.native_group_norm(x, None, None, x.shape[0], 4, 12, 2, 1e-5)[0],
    "native_batch_norm": lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0],
}


@pytest.mark.parametrize("name", NATIVE)
def test_operators_that_return_their_statistics(name: str) -> None:
    check(NATIVE[name], unchanged, SIZE, {name: Operation.POINTWISE})


WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
    "layer_norm_of_two_statistics": lambda x: (
        (x - torch.var_mean(x, 1, keepdim=True)[1]) * torch.rsqrt(torch.var_mean(x, 1, keepdim=True)[0] + 1e-5)
    ),
    "rms_norm": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "unit_length": lambda x: F.normalize(x, dim=1),
    "unit_length_over_tokens": lambda x: F.normalize(x.flatten(2), dim=-1).view(x.shape),
    "response_normalisation": lambda x: (
        x + x * (x.norm(dim=(2, 3), keepdim=True) / (x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True) + 1e-6))
    ),
    "weighted_by_energy": lambda x: x * ((x - x.mean((2, 3), keepdim=True)).pow(2) + 0.5).sigmoid(),
}


@pytest.mark.parametrize("name", list(WRITTEN)[:-1])
def test_normalisation_written_out(name: str) -> None:
    check(WRITTEN[name], unchanged, SIZE)


def test_centring_over_tokens_is_pointwise() -> None:
    """A mean that is subtracted from what it is the mean of is a part of a normalisation, over tokens too."""
    operations = {"sub": Operation.POINTWISE}
    check(lambda x: x - x.mean((2, 3), keepdim=True), unchanged, SIZE, operations)
    check(lambda x: x.mean((2, 3), keepdim=True) - x, unchanged, SIZE, operations)
