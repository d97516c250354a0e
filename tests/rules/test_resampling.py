"""Resampling: the operator's own weights, over what it makes of ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, several
from torch import Tensor, nn

from tlfx import Operation, ProvenanceError

SIZE = (2, 4, 6)


def nearest(length: int, out: int, scale: float) -> Tensor:
    """Weights (out, length) of the pixel below i·scale."""
    weight = torch.zeros(out, length, dtype=torch.float64)
    for i in range(out):
        weight[i, min(int(i * scale), length - 1)] = 1
    return weight


def nearest_exact(length: int, out: int, scale: float) -> Tensor:
    """Weights of the pixel under (i + ½)·scale."""
    weight = torch.zeros(out, length, dtype=torch.float64)
    for i in range(out):
        weight[i, min(int((i + 0.5) * scale), length - 1)] = 1
    return weight


def linear(length: int, out: int, scale: float) -> Tensor:
    """Weights of the two pixels around (i + ½)·scale − ½, the border repeated."""
    weight = torch.zeros(out, length, dtype=torch.float64)
    for i in range(out):
        place = max((i + 0.5) * scale - 0.5, 0.0)
        low = min(int(place), length - 1)
        weight[i, low] += 1 - (place - low)
        weight[i, min(low + 1, length - 1)] += place - low
    return weight


def linear_with_corners(length: int, out: int, scale: float) -> Tensor:
    """Weights of the two pixels around i·(length − 1)/(out − 1)."""
    weight = torch.zeros(out, length, dtype=torch.float64)
    for i in range(out):
        place = i * (length - 1) / (out - 1) if out > 1 else 0.0
        low = min(int(place), length - 1)
        weight[i, low] += 1 - (place - low)
        weight[i, min(low + 1, length - 1)] += place - low
    return weight


def smooth(length: int, out: int, scale: float) -> Tensor:
    """Weights of a triangle as wide as the pixels of the output (antialiasing)."""
    weight = torch.zeros(out, length, dtype=torch.float64)
    width = max(scale, 1.0)
    for i in range(out):
        centre = (i + 0.5) * scale - 0.5
        for j in range(length):
            weight[i, j] = max(0.0, 1 - abs(j - centre) / width)
    return weight / weight.sum(1, keepdim=True)


def resampled(y: Tensor, out: Sequence[int], weights: Callable[..., Tensor]) -> Tensor:
    """Weights applied axis by axis, (batch, channels, *size) to (batch, channels, *out)."""
    for axis, count in enumerate(out, 2):
        weight = weights(y.shape[axis], count, y.shape[axis] / count)
        y = torch.tensordot(y, weight, ([axis], [1])).movedim(-1, axis)
    return y


MODES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "nearest": (nearest, {"mode": "nearest"}),
    "nearest-exact": (nearest_exact, {"mode": "nearest-exact"}),
    "bilinear": (linear, {"mode": "bilinear"}),
    "bilinear with corners": (linear_with_corners, {"mode": "bilinear", "align_corners": True}),
    "bilinear smooth": (smooth, {"mode": "bilinear", "antialias": True}),
    "bicubic": (linear, {"mode": "bicubic"}),
    "bicubic with corners": (linear_with_corners, {"mode": "bicubic", "align_corners": True}),
    "bicubic smooth": (smooth, {"mode": "bicubic", "antialias": True}),
}


@pytest.mark.parametrize("mode", slow_except(("nearest", "bilinear smooth"), MODES))
@several(4)
@given(st.tuples(st.integers(1, 9), st.integers(2, 9)))
def test_interpolation_to_a_size(mode: str, out: tuple[int, int]) -> None:
    """Bicubic goes by bilinear weights, which have no negative lobes. (To one column torch's own smoothing errs.)"""
    weights, options = MODES[mode]
    check(lambda x: F.interpolate(x, size=out, **options), lambda y, x: resampled(y, out, weights), SIZE)


@pytest.mark.parametrize(
    ("factor", "mode"),
    slow_except(
        [(2, "nearest"), (0.5, "bilinear"), ((2, 3), "bilinear"), (0.5, "bicubic")],
        product((2, 0.5, (2, 3)), ("nearest", "bilinear", "bicubic")),
    ),
)
def test_interpolation_by_a_factor(mode: str, factor: Any) -> None:
    weights, options = MODES[mode]
    each = factor if isinstance(factor, tuple) else (factor, factor)
    out = [int(n * f) for n, f in zip(SIZE[1:], each, strict=True)]
    check(
        lambda x: F.interpolate(x, scale_factor=factor, **options),
        lambda y, x: resampled(y, out, weights),
        SIZE,
        {f"upsample_{mode}2d": Operation.SPATIAL_MIX},
    )


def test_a_factor_that_does_not_divide() -> None:
    """The factor itself, not the ratio of sizes, gives the places."""
    check(
        lambda x: F.interpolate(x, scale_factor=1.4, mode="bilinear"),
        lambda y, x: torch.einsum("bchw,yh,xw->bcyx", y, linear(4, 5, 1 / 1.4), linear(6, 8, 1 / 1.4)),
        SIZE,
    )


@pytest.mark.parametrize(
    ("mode", "weights"), [("nearest", nearest), ("linear", linear), ("nearest-exact", nearest_exact)]
)
def test_interpolation_of_sequences(mode: str, weights: Callable[..., Tensor]) -> None:
    check(
        lambda x: F.interpolate(x[:, :, 0], 4, mode=mode), lambda y, x: resampled(y[:, :, 0], [4], weights), (2, 1, 7)
    )


@pytest.mark.parametrize(
    ("mode", "weights"), [("nearest", nearest), ("trilinear", linear), ("nearest-exact", nearest_exact)]
)
def test_interpolation_of_videos(mode: str, weights: Callable[..., Tensor]) -> None:
    out = (2, 5, 4)
    check(lambda x: F.interpolate(x, out, mode=mode), lambda y, x: resampled(y, out, weights), (2, 3, 4, 5))


def test_interpolation_by_area_is_pooling() -> None:
    check(
        lambda x: F.interpolate(x, (2, 3), mode="area"),
        lambda y, x: F.avg_pool2d(y, 2),
        SIZE,
        {"adaptive_avg_pool2d": Operation.AGGREGATION},
    )


def test_interpolation_of_one_label_mixes_nothing() -> None:
    """A pooled map spread out again (ASPP) keeps its one label."""
    check(
        lambda x: F.interpolate(x.mean((2, 3), keepdim=True), (4, 6), mode="bilinear"),
        lambda y, x: y.mean((2, 3), keepdim=True).expand_as(y),
        SIZE,
        {"upsample_bilinear2d": Operation.CHANNEL_MIX},
    )


def test_interpolation_beside_padding() -> None:
    """Zeros around the image do not count."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        over, under = (F.interpolate(F.pad(v, (0, 2, 0, 1)), (7, 5), mode="bilinear") for v in (y, torch.ones_like(y)))
        return torch.where(under > 0, over / under, torch.nan)

    check(lambda x: F.interpolate(F.pad(x, (0, 2, 0, 1)), (7, 5), mode="bilinear"), twin, SIZE)


# places that may depend on the image


def sampled(y: Tensor, grid: Tensor, align: bool, border: bool = False, rounded: bool = False) -> Tensor:
    """Pixel by pixel: the bilinear weights of the four neighbours that exist, normalised; uniform where none does."""
    batch, _, height, width = y.shape
    out = y.new_empty(batch, y.shape[1], *grid.shape[1:3])
    for b in range(batch):
        for i in range(grid.shape[1]):
            for j in range(grid.shape[2]):
                places = []
                for value, n in zip(grid[b, i, j].tolist(), (width, height), strict=True):
                    place = (value + 1) / 2 * (n - 1) if align else ((value + 1) * n - 1) / 2
                    place = min(max(place, 0.0), n - 1.0) if border else place
                    places.append(round(place) if rounded else place)
                weight = bilinear(places, height, width)
                total = weight.sum()
                weight = weight / total if total > 1e-12 else torch.full_like(weight, 1 / weight.numel())
                out[b, :, i, j] = (y[b] * weight).sum((1, 2))
    return out


def bilinear(places: list[float], height: int, width: int) -> Tensor:
    across = torch.tensor([max(0.0, 1 - abs(places[0] - j)) for j in range(width)], dtype=torch.float64)
    down = torch.tensor([max(0.0, 1 - abs(places[1] - i)) for i in range(height)], dtype=torch.float64)
    return torch.outer(down, across)


@pytest.mark.parametrize(
    ("mode", "padding", "align"),
    slow_except(
        [("bilinear", "border", False), ("nearest", "zeros", False)],
        product(("bilinear", "nearest", "bicubic"), ("zeros", "border"), (True, False)),
    ),
)
def test_sampling_at_given_places(mode: str, padding: str, align: bool) -> None:
    grid = torch.rand(1, 3, 4, 2, generator=torch.Generator().manual_seed(3)) * 3 - 1.5

    def function(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), mode, padding, align)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        places = grid.double().expand(len(y), -1, -1, -1)
        return sampled(y, places, align, padding == "border", mode == "nearest")

    check(function, twin, SIZE, {"grid_sampler": Operation.SPATIAL_MIX}, grid=grid)


def test_sampling_at_places_from_the_image() -> None:
    """A spatial transformer: offsets that the image itself gives."""
    base = torch.rand(1, 4, 6, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def places(x: Tensor, base: Tensor) -> Tensor:
        return base + 0.3 * x.permute(0, 2, 3, 1).tanh()

    check(
        lambda x, base: F.grid_sample(x, places(x, base), align_corners=False),
        lambda y, x: sampled(y, places(x, base.double()), align=False),
        SIZE,
        {"grid_sampler": Operation.SPATIAL_MIX},
        base=base,
    )


def test_an_affine_transformation() -> None:
    theta = torch.tensor([[[0.7, 0.2, 0.1], [-0.2, 0.7, 0.0]]])

    def function(x: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta.expand(x.shape[0], -1, -1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        grid = F.affine_grid(theta.double().expand(len(y), -1, -1), list(y.shape), align_corners=False)
        return sampled(y, grid, align=False)

    check(function, twin, SIZE, theta=theta)


# patches back to an image


@several(8)
@given(st.sampled_from([(2, 2, 0), (2, 1, 0), (3, 1, 1), (3, 2, 1), (4, 2, 1)]))
def test_folding_what_was_unfolded_gives_each_pixel_its_label(drawn: tuple[int, int, int]) -> None:
    """Overlapping patches are averaged, each pixel meeting itself."""
    kernel, stride, padding = drawn

    def function(x: Tensor) -> Tensor:
        return F.fold(F.unfold(x, kernel, 1, padding, stride), x.shape[2:], kernel, 1, padding, stride)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return torch.where(function(torch.ones_like(y)) > 0, y, torch.nan)

    check(function, twin, (2, 6, 8), {"col2im": Operation.SPATIAL_MIX})


def test_folding_of_patches_with_one_label_each() -> None:
    """Outlook attention: every patch brings the label of its centre."""

    def function(x: Tensor, mix: nn.Module) -> Tensor:
        return F.fold(mix(x).flatten(2), x.shape[2:], 3, padding=1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = y[:, :1].repeat(1, 9, 1, 1).flatten(2)
        over, under = (F.fold(v, (4, 6), 3, padding=1) for v in (rows, torch.ones_like(rows)))
        return (over / under).expand(-1, 2, -1, -1)

    check(function, twin, SIZE, {"col2im": Operation.SPATIAL_MIX}, mix=nn.Conv2d(2, 18, 1))


def test_fold_with_labels_that_differ_by_channel_is_an_error() -> None:
    with pytest.raises(ProvenanceError, match="channels carry different labels"):
        Probe(lambda x: F.fold(F.unfold(torch.cat((x, x.flip(3)), 1), 2, stride=2), (4, 6), 2, stride=2), SIZE)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("modulated", [True, False])
def test_deformable_convolution(modulated: bool, groups: int) -> None:
    """Torchvision's deform_conv2d: |K| and the run-time offsets, over what they make of ones."""
    ops = pytest.importorskip("torchvision.ops")
    conv = ops.DeformConv2d(2, 6, 3, stride=2, padding=1, groups=groups)
    offsets, gates = (nn.Conv2d(2, n * groups, 3, stride=2, padding=1) for n in (18, 9))

    def function(x: Tensor, conv: nn.Module, offsets: nn.Module, gates: nn.Module) -> Tensor:
        return conv(x, offsets(x), gates(x).sigmoid() if modulated else None)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        kernel = conv.weight.abs().mean((0, 1), keepdim=True).double()
        gate = gates(x.float()).sigmoid().double() if modulated else None
        over, under = (
            ops.deform_conv2d(
                v[:, :groups], offsets(x.float()).double(), kernel.expand(-1, groups, -1, -1), None, 2, 1, 1, gate
            )
            for v in (y, torch.ones_like(y))
        )
        return (over / under).expand(-1, 6, -1, -1)

    operations = {"deform_conv2d": Operation.SPATIAL_MIX}
    check(function, twin, SIZE, operations, conv=conv, offsets=offsets, gates=gates)


def test_an_affine_transformation_by_the_image() -> None:
    """A spatial transformer: the grid depends on the image and has no label; what is sampled has that of its places."""
    where = nn.Linear(2, 6)

    def theta(x: Tensor) -> Tensor:
        return 0.2 * where(x.mean((2, 3))).view(-1, 2, 3) + torch.eye(2, 3)

    def function(x: Tensor, where: nn.Module) -> Tensor:
        turned = 0.2 * where(x.mean((2, 3))).view(-1, 2, 3) + torch.eye(2, 3)
        return F.grid_sample(x, F.affine_grid(turned, [x.shape[0], 2, 3, 5], False), "bilinear", "border", False)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        grid = F.affine_grid(theta(x.float()), [len(x), 2, 3, 5], False).double()
        return F.grid_sample(y, grid, "bilinear", "border", False)

    check(function, twin, SIZE, {"affine_grid_generator": Operation.WEIGHT}, where=where)


def test_unpooling() -> None:
    """SegNet: what comes back where the pool took it from has the label of its window, and so have the zeros beside."""
    conv = nn.Conv2d(2, 2, 1)

    def function(x: Tensor, conv: nn.Module) -> Tensor:
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(conv(pooled), places, [2, 2])

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return F.avg_pool2d(y, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)

    check(function, twin, SIZE, conv=conv)
