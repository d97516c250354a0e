"""Convolutions: |K| averaged over channels and normalised over valid positions; patches are aggregated, 1x1 kernels
mix channels (sec. 3.2, Table 10)."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_harness import Probe, check, label_rows, normalised, several, squeezed, tokens
from torch import Tensor, nn

from tlfx import Operation, ProvenanceError

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (1, 9), 2: (5, 6), 3: (3, 4, 5)}
"""Images of the sizes that are slid over; a sequence is an image of one row."""


def windows(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: int, before: list[int], after: list[int], dilation: int
) -> list[tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]]:
    """Every output place with the pairs (tap of the kernel, place of the input) that it sees."""
    counts = [
        (n + b + a - dilation * (k - 1) - 1) // stride + 1
        for n, k, b, a in zip(size, kernel, before, after, strict=True)
    ]
    places = []
    for out in product(*map(range, counts)):
        pairs = []
        for tap in product(*map(range, kernel)):
            place = tuple(o * stride - b + t * dilation for o, t, b in zip(out, tap, before, strict=True))
            if all(0 <= p < n for p, n in zip(place, size, strict=True)):
                pairs.append((tap, place))
        places.append((out, pairs))
    return places


def of_all(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """An index of one place in every sample."""
    return slice(None), *place


def slide(y: Tensor, kernel: Tensor, stride: int, before: list[int], after: list[int], dilation: int) -> Tensor:
    """Y_p ← Σ K_q Y_q / Σ K_q over the valid places q of each window, (batch, *size) to (batch, *out)."""
    size, shape = tuple(y.shape[1:]), tuple(kernel.shape)
    every = windows(size, shape, stride, before, after, dilation)
    out = y.new_full((len(y), *(1 + max(place[i] for place, _ in every) for i in range(len(size)))), torch.nan)
    for place, pairs in every:
        if pairs:
            total = sum(kernel[tap] for tap, _ in pairs)
            out[of_all(place)] = sum(kernel[tap] * y[of_all(p)] for tap, p in pairs) / total
    return out


def scatter(y: Tensor, kernel: Tensor, out_size: tuple[int, ...], stride: int, padding: int, dilation: int) -> Tensor:
    """The transposed walk: every input place adds to the output places of its window."""
    over, under = y.new_zeros(len(y), *out_size), y.new_zeros(out_size)
    for place in product(*map(range, y.shape[1:])):
        for tap in product(*map(range, kernel.shape)):
            out = tuple(p * stride - padding + t * dilation for p, t in zip(place, tap, strict=True))
            if all(0 <= o < n for o, n in zip(out, out_size, strict=True)):
                over[of_all(out)] += kernel[tap] * y[of_all(place)]
                under[out] += kernel[tap]
    return torch.where(under > 0, over / under, torch.nan)


def magnitude(weight: Tensor) -> Tensor:
    """|K| averaged over in- and out-channels."""
    return weight.detach().double().abs().mean((0, 1))


def channels(y: Tensor, count: int) -> Tensor:
    """One label for all channels: (batch, *size) to (batch, count, *size)."""
    return y.unsqueeze(1).expand(-1, count, *y.shape[1:])


@st.composite
def settings_of(draw: st.DrawFn) -> dict[str, Any]:
    """A convolution that fits its image, neither patches nor of one pixel."""
    spatial = draw(st.sampled_from([1, 1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 2, 4]))
    drawn: dict[str, Any] = {
        "kernel_size": tuple(draw(st.integers(1, 3)) for _ in range(spatial)),
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.sampled_from([0, 1, 2, "same", "valid"])),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if drawn["padding"] == "same":
        drawn["stride"] = 1
    assume(max(drawn["kernel_size"]) > 1)
    before, after = sides(drawn["padding"], drawn["kernel_size"], drawn["dilation"])
    extents = [n + b + a for n, b, a in zip(SIZES[spatial][-spatial:], before, after, strict=True)]
    assume(all(drawn["dilation"] * (k - 1) < n for k, n in zip(drawn["kernel_size"], extents, strict=True)))
    padded = drawn["padding"] not in (0, "valid")
    assume(padded or drawn["dilation"] > 1 or set(drawn["kernel_size"]) != {drawn["stride"]})
    return drawn


def sides(padding: int | str, kernel: tuple[int, ...], dilation: int) -> tuple[list[int], list[int]]:
    """Padding before and after, on each axis."""
    if padding == "same":
        totals = [dilation * (k - 1) for k in kernel]
        return [t // 2 for t in totals], [t - t // 2 for t in totals]
    each = 0 if padding == "valid" else int(padding)
    return [each] * len(kernel), [each] * len(kernel)


@several(20)
@given(settings_of())
def test_convolution_is_spatial_mixing(drawn: dict[str, Any]) -> None:
    spatial = len(drawn["kernel_size"])
    conv = CONVOLUTIONS[spatial](4, 8, **drawn)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        before, after = sides(drawn["padding"], drawn["kernel_size"], drawn["dilation"])
        rows = squeezed(y, spatial)[:, 0]
        return channels(slide(rows, magnitude(conv.weight), drawn["stride"], before, after, drawn["dilation"]), 8)

    check(
        lambda x, conv: conv(squeezed(x, spatial)),
        twin,
        (4, *SIZES[spatial]),
        {f"conv{spatial}d": Operation.SPATIAL_MIX},
        conv=conv,
    )


@several(12)
@given(
    st.sampled_from([1, 2, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
)
def test_transposed_convolution_is_spatial_mixing(
    spatial: int, kernel: int, stride: int, padding: int, extra: int, dilation: int, groups: int
) -> None:
    assume(extra < max(stride, dilation) and padding <= dilation * (kernel - 1))
    conv = TRANSPOSED[spatial](4, 6, kernel, stride, padding, extra, groups, dilation=dilation)
    size = SIZES[spatial]

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = squeezed(y, spatial)[:, 0]
        out = tuple((n - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 for n in rows.shape[1:])
        return channels(scatter(rows, magnitude(conv.weight), out, stride, padding, dilation), 6)

    check(
        lambda x, conv: conv(squeezed(x, spatial)),
        twin,
        (4, *size),
        {f"conv_transpose{spatial}d": Operation.SPATIAL_MIX},
        conv=conv,
    )


@pytest.mark.parametrize("padding", slow_except(["valid"], [0, "valid"]))
@pytest.mark.parametrize(
    ("spatial", "patch"), [(1, (3,)), (1, (4,)), (2, (2, 3)), (2, (3, 2)), (2, (4, 4)), (3, (2, 2, 2))]
)
def test_patches_are_aggregated(spatial: int, patch: tuple[int, ...], padding: int | str) -> None:
    """Kernel equals stride, no padding: uniform over the patch; pixels that fill no patch are left out."""
    if padding == "valid" and set(patch) != {patch[0]}:
        patch = (patch[0],) * spatial
    conv = CONVOLUTIONS[spatial](4, 5, patch, patch, padding)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = squeezed(y, spatial)[:, 0]
        counts = [n // p for n, p in zip(rows.shape[1:], patch, strict=True)]
        out = rows.new_empty(len(rows), *counts)
        for place in product(*map(range, counts)):
            cut = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True))
            out[of_all(place)] = rows[of_all(cut)].flatten(1).mean(1)
        return channels(out, 5)

    check(
        lambda x, conv: conv(squeezed(x, spatial)),
        twin,
        (4, *SIZES[spatial]),
        {f"conv{spatial}d": Operation.AGGREGATION},
        conv=conv,
    )


def test_grouped_patches_are_aggregated() -> None:
    """A depthwise spatial reduction (PVT, Twins)."""
    check(
        lambda x, conv: conv(x),
        lambda y, x: F.avg_pool2d(y, 2),
        (4, 4, 6),
        {"conv2d": Operation.AGGREGATION},
        conv=nn.Conv2d(4, 4, 2, 2, groups=4),
    )


@pytest.mark.parametrize(("spatial", "stride"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, (1, 3)), (3, 2)])
@pytest.mark.parametrize("groups", slow_except([2], [1, 2]))
def test_one_pixel_kernels_mix_channels(spatial: int, stride: Any, groups: int) -> None:
    """1x1: every stride-th pixel keeps its label."""
    steps = stride if isinstance(stride, tuple) else (stride,) * spatial
    check(
        lambda x, conv: conv(squeezed(x, spatial)),
        lambda y, x: channels(squeezed(y, spatial)[:, 0][of_all(tuple(slice(None, None, s) for s in steps))], 6),
        (4, *SIZES[spatial]),
        {f"conv{spatial}d": Operation.CHANNEL_MIX},
        conv=CONVOLUTIONS[spatial](4, 6, 1, stride, groups=groups),
    )


@pytest.mark.parametrize("padding", ["same", "valid", 1, 2])
def test_padding_of_one_pixel_kernels(padding: int | str) -> None:
    """What lies outside the image sees nothing."""
    width = padding if isinstance(padding, int) else 0
    check(
        lambda x, conv: conv(x),
        lambda y, x: F.pad(channels(y[:, 0], 6), [width] * 4, value=torch.nan),
        (4, 4, 6),
        conv=nn.Conv2d(4, 6, 1, padding=padding),
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_by_copies_counts(mode: Any) -> None:
    """Copies of the border carry its labels."""
    conv = nn.Conv2d(4, 5, 3, padding=1, padding_mode=mode)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = F.pad(y[:, :1], (1, 1, 1, 1), mode)[:, 0]
        return channels(slide(rows, magnitude(conv.weight), 1, [0, 0], [0, 0], 1), 5)

    check(lambda x, conv: conv(x), twin, (4, 4, 5), {"conv2d": Operation.SPATIAL_MIX}, conv=conv)


def test_explicit_padding_does_not_count() -> None:
    """TensorFlow's "same" by F.pad, then a convolution without padding."""
    conv = nn.Conv2d(4, 5, 3, stride=2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return channels(slide(y[:, 0], magnitude(conv.weight), 2, [0, 0], [1, 1], 1), 5)

    check(lambda x, conv: conv(F.pad(x, (0, 1, 0, 1))), twin, (4, 4, 6), {"conv2d": Operation.SPATIAL_MIX}, conv=conv)


def test_patches_of_a_padded_map() -> None:
    """Patches cut by F.pad to whole ones: uniform over their valid pixels."""
    conv = nn.Conv2d(4, 5, 4, stride=4)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return channels(F.avg_pool2d(y, 4, ceil_mode=True)[:, 0], 5)

    check(lambda x, conv: conv(F.pad(x, (0, 2))), twin, (4, 4, 6), {"conv2d": Operation.AGGREGATION}, conv=conv)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_channels_of_different_labels(groups: int) -> None:
    """Each group sees its own channels: their mean label, mixed by |K|."""
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        both = torch.cat((y, y.flip(3)), 1).unflatten(1, (groups, -1)).mean(2)
        rows = [slide(part, magnitude(conv.weight), 1, [1, 1], [1, 1], 1) for part in both.unbind(1)]
        return torch.stack(rows, 1).repeat_interleave(8 // groups, 1)

    check(
        lambda x, conv: conv(torch.cat((x, x.flip(3)), 1)),
        twin,
        (4, 4, 5),
        {"conv2d": Operation.SPATIAL_MIX},
        conv=conv,
    )


def test_groups_of_channels_of_different_labels() -> None:
    """A 1x1 kernel in groups over concatenated features: each group keeps its label."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        both = torch.cat((y, y.flip(3)), 1).unflatten(1, (2, -1)).mean(2)
        return both.repeat_interleave(3, 1)

    check(
        lambda x, conv: conv(torch.cat((x, x.flip(3)), 1)),
        twin,
        (4, 4, 5),
        {"conv2d": Operation.CHANNEL_MIX},
        conv=nn.Conv2d(8, 6, 1, groups=2),
    )


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_padding_by_its_name(spatial: int) -> None:
    """ "valid" is the name's default, which a graph leaves out; "same" pads the end more where it must."""
    for name, after in (("valid", 0), ("same", 1)):
        conv = CONVOLUTIONS[spatial](4, 5, 2, padding=name)

        def twin(y: Tensor, x: Tensor, weight: Tensor = conv.weight, after: int = after) -> Tensor:
            rows = squeezed(y, spatial)[:, 0]
            return channels(slide(rows, magnitude(weight), 1, [0] * spatial, [after] * spatial, 1), 5)

        check(lambda x, conv: conv(squeezed(x, spatial)), twin, (4, *SIZES[spatial]), conv=conv)


def test_a_kernel_over_a_pooled_map_mixes_channels() -> None:
    """Where all positions have one label there is nothing to mix."""
    check(
        lambda x, conv: conv(x.mean((2, 3), keepdim=True).expand_as(x)),
        lambda y, x: channels(y[:, 0].mean((1, 2), keepdim=True).expand(-1, 4, 6), 5),
        (4, 4, 6),
        {"conv2d": Operation.CHANNEL_MIX},
        conv=nn.Conv2d(4, 5, 3, padding=1),
    )


def test_efficient_channel_attention() -> None:
    """A kernel that slides over channels leaves labels alone (ECA)."""

    def function(x: Tensor, conv: nn.Module) -> Tensor:
        gate = conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return gate.view(x.shape[0], 4, 1, 1)

    check(
        function,
        lambda y, x: channels(y[:, 0].mean((1, 2), keepdim=True), 4),
        (4, 4, 6),
        {"conv1d": Operation.CHANNEL_MIX},
        conv=nn.Conv1d(1, 1, 3, padding=1),
    )


def test_tokens_as_channels_of_a_one_pixel_kernel() -> None:
    """Token mixing by a Conv1d of kernel 1 over (batch, tokens, channels)."""
    conv = nn.Conv1d(24, 7, 1)
    check(
        lambda x, conv: conv(tokens(x)),
        lambda y, x: (label_rows(y) @ normalised(conv.weight[..., 0]).T).unsqueeze(-1).expand(-1, -1, 4),
        (4, 4, 6),
        {"conv1d": Operation.SPATIAL_MIX},
        conv=conv,
    )


def test_rows_merged_with_the_batch() -> None:
    """A 1-D kernel along each row of the map."""
    conv = nn.Conv1d(4, 5, 3, padding=1)

    def cut(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return channels(slide(cut(y)[:, 0], magnitude(conv.weight), 1, [1], [1], 1), 5)

    check(lambda x, conv: conv(cut(x)), twin, (4, 4, 6), {"conv1d": Operation.SPATIAL_MIX}, conv=conv)


def test_standardised_kernels() -> None:
    """The kernel that runs is the one that counts, also where the forward computes it."""
    conv = nn.Conv2d(4, 5, 3)

    def function(x: Tensor, conv: Any) -> Tensor:
        weight = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, conv.bias)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weight = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
        return channels(slide(y[:, 0], magnitude(weight), 1, [0, 0], [0, 0], 1), 5)

    check(function, twin, (4, 4, 5), {"conv2d": Operation.SPATIAL_MIX}, conv=conv)


def test_a_kernel_of_zeros_mixes_uniformly() -> None:
    """A zero-initialised kernel still sees its window."""
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    nn.init.zeros_(conv.weight)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return channels(slide(y[:, 0], torch.ones(3, 3), 1, [1, 1], [1, 1], 1), 4)

    check(lambda x, conv: conv(x), twin, (4, 4, 5), conv=conv)


def kernels_of_samples(x: Tensor, experts: Tensor) -> Tensor:
    """A kernel for each sample (CondConv), a mixture of two: (batch · out, in, 3, 3)."""
    return (x.mean((2, 3)).sigmoid()[:, :2] @ experts.flatten(1)).view(-1, *experts.shape[2:])


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (1, 2, 2)])
def test_samples_as_groups(stride: int, padding: int, dilation: int) -> None:
    def function(x: Tensor, experts: Tensor) -> Tensor:
        kernel = kernels_of_samples(x, experts)
        out = F.conv2d(x.reshape(1, -1, 4, 6), kernel, None, stride, padding, dilation, groups=x.shape[0])
        return out.view(x.shape[0], 8, *out.shape[2:])

    experts = nn.Parameter(torch.randn(2, 8, 4, 3, 3))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        kernels = kernels_of_samples(x.float(), experts).unflatten(0, (-1, 8))
        sides = [padding] * 2
        labels = [
            slide(label[:1], magnitude(kernel), stride, sides, sides, dilation)
            for label, kernel in zip(y, kernels, strict=True)
        ]
        return channels(torch.cat(labels), 8)

    probe = check(function, twin, (4, 4, 6), experts=experts)
    assert probe.operation("conv2d") is Operation.SPATIAL_MIX


def test_patches_and_pixels_of_samples_as_groups() -> None:
    """A kernel that equals its stride is aggregation, a kernel of one pixel channel mixing."""

    def convolved(x: Tensor, size: int) -> Tensor:
        kernel = x.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 16, size, size).reshape(-1, 4, size, size)
        return F.conv2d(x.reshape(1, -1, 4, 6), kernel, None, size, groups=x.shape[0]).unflatten(1, (-1, 4))[0]

    probe = check(lambda x: convolved(x, 2), lambda y, x: F.avg_pool2d(y, 2), (4, 4, 6))
    assert probe.operation("conv2d") is Operation.AGGREGATION
    assert check(lambda x: convolved(x, 1), lambda y, x: y, (4, 4, 6)).operation("conv2d") is Operation.CHANNEL_MIX


def test_a_kernel_of_another_sample_is_an_error() -> None:
    def function(x: Tensor, experts: Tensor) -> Tensor:
        kernel = kernels_of_samples(x, experts).roll(1, 0)
        return F.conv2d(x.reshape(1, -1, 4, 6), kernel, padding=1, groups=x.shape[0]).view(x.shape)

    with pytest.raises(ProvenanceError, match="batch"):
        Probe(function, (4, 4, 6), experts=nn.Parameter(torch.randn(2, 4, 4, 3, 3)))


def test_one_convolution_after_another() -> None:
    """Two convolutions in a row: the second mixes the labels of the first."""
    one, two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = slide(y[:, 0], magnitude(one.weight), 1, [1, 1], [1, 1], 1)
        return channels(slide(rows, magnitude(two.weight), 2, [1, 1], [1, 1], 1), 4)

    check(lambda x, one, two: two(one(x).relu()), twin, (4, 4, 6), one=one, two=two)
