"""Recurrences, scans and Fourier transforms: uniform over what a position can see."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, label_rows, several, spread, tokens
from torch import Tensor, nn

from tlfx import Operation
from tlfx.propagate.values import Role

SIZE = (4, 3, 4)
TOKENS = 12
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}


def so_far(rows: Tensor, axis: int = 1) -> Tensor:
    """The mean of all labels up to each step."""
    count = torch.arange(1, rows.shape[axis] + 1).view([-1 if a == axis else 1 for a in range(rows.dim())])
    return rows.cumsum(axis) / count


@several(4)
@given(st.sampled_from(list(CELLS)), st.booleans(), st.booleans(), st.integers(1, 2), st.booleans())
def test_recurrent_networks(name: str, batch_first: bool, both_ways: bool, layers: int, training: bool) -> None:
    """One way a step sees those before it, both ways all of them."""
    cell = CELLS[name](4, 5, layers, batch_first=batch_first, bidirectional=both_ways).train(training)

    def function(x: Tensor, cell: nn.Module) -> Tensor:
        return cell(tokens(x) if batch_first else tokens(x).transpose(0, 1))[0]

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = label_rows(y)
        seen = rows.mean(1, keepdim=True).expand_as(rows) if both_ways else so_far(rows)
        out = spread(seen, 10 if both_ways else 5)
        return out if batch_first else out.transpose(0, 1)

    check(function, twin, SIZE, {name: Operation.SPATIAL_MIX}, cell=cell)


@pytest.mark.parametrize("axis", [2, 3], ids=["columns", "rows"])
def test_recurrence_along_an_axis_of_the_map(axis: int) -> None:
    """Sequencer: rows or columns merged with the batch."""
    cell = nn.LSTM(4, 4, batch_first=True, bidirectional=True)

    def cut(x: Tensor) -> Tensor:
        return x.permute(0, 5 - axis, axis, 1).flatten(0, 1)

    check(
        lambda x, cell: cell(cut(x))[0],
        lambda y, x: spread(cut(y)[..., 0].mean(1, keepdim=True).expand(-1, SIZE[axis - 1]), 8),
        SIZE,
        {"lstm": Operation.SPATIAL_MIX},
        cell=cell,
    )


def test_rows_of_pixels_as_steps() -> None:
    """Each step is a row of the image, its pixels the channels: uniform over all rows so far."""
    check(
        lambda x, cell: cell(x[:, 0])[0],
        lambda y, x: spread(so_far(y[:, 0].mean(2)), 5),
        (1, 3, 4),
        {"lstm": Operation.SPATIAL_MIX},
        cell=nn.LSTM(4, 5, batch_first=True),
    )


@pytest.mark.parametrize(
    ("batch_first", "name"),
    slow_except([(True, "lstm"), (False, "rnn_tanh")], product((True, False), CELLS)),
)
def test_the_last_state_has_seen_every_step(name: str, batch_first: bool) -> None:
    """A classifier that reads the hidden state (layers, batch, channels)."""

    def function(x: Tensor, cell: nn.Module) -> Tensor:
        state = cell(tokens(x) if batch_first else tokens(x).transpose(0, 1))[1]
        return state[0] if isinstance(state, tuple) else state

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return y.mean((1, 2, 3))[None, :, None].expand(2, -1, 5)

    check(function, twin, SIZE, cell=CELLS[name](4, 5, 2, batch_first=batch_first))


SCANS: dict[str, Callable[..., Any]] = {
    "cumsum": torch.cumsum,
    "cumprod": torch.cumprod,
    "logcumsumexp": torch.logcumsumexp,
    "cummax": lambda x, axis: torch.cummax(x, axis).values,
    "cummin": lambda x, axis: torch.cummin(x, axis).values,
    "cumsum_": lambda x, axis: x.clone().cumsum_(axis),
}


@pytest.mark.parametrize(
    ("axis", "name"),
    slow_except(
        [(2, "cumsum"), (2, "logcumsumexp"), (2, "cummax"), (2, "cumsum_"), (-1, "cumprod")], product((2, -1), SCANS)
    ),
)
def test_scans(name: str, axis: int) -> None:
    check(lambda x: SCANS[name](x, axis), lambda y, x: so_far(y, axis % 4), SIZE)


def test_a_scan_over_channels_leaves_labels() -> None:
    check(lambda x: x.cumsum(1), lambda y, x: y, SIZE, {"cumsum": Operation.POINTWISE})


def test_scans_from_both_ends_are_averaged() -> None:
    check(
        lambda x: x.cumsum(2) + x.flip(2).cumsum(2).flip(2),
        lambda y, x: (so_far(y, 2) + so_far(y.flip(2), 2).flip(2)) / 2,
        SIZE,
    )


def test_a_running_mean_written_out() -> None:
    """The sum so far over the count so far."""

    def function(x: Tensor) -> Tensor:
        return tokens(x).cumsum(1) / torch.arange(1, TOKENS + 1).view(1, -1, 1)

    check(function, lambda y, x: spread(so_far(label_rows(y)), 4), SIZE, {"cumsum": Operation.SPATIAL_MIX})


def test_positions_counted_by_a_scan_are_constants() -> None:
    """cumsum of a mask of ones (sine position embedding)."""
    probe = Probe(lambda x: (x, torch.ones(1, 3, 4).cumsum(1)), SIZE)
    assert probe.roles == [Role.CONTENT, Role.CONSTANT]


# Fourier transforms


TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "fft": (lambda x: torch.fft.fft(x).real, (3,)),
    "fft_over_rows": (lambda x: torch.fft.fft(x, dim=2).real, (2,)),
    "ifft": (lambda x: torch.fft.ifft(x, dim=-1, norm="ortho").abs(), (3,)),
    "rfft": (lambda x: torch.fft.rfft(x, dim=3).real, (3,)),
    "hfft": (lambda x: torch.fft.hfft(x), (3,)),
    "fft2": (lambda x: torch.fft.fft2(x).real, (2, 3)),
    "fft2_over_tokens_and_channels": (lambda x: torch.fft.fft2(tokens(x)).real, (1,)),
    "fftn": (lambda x: torch.fft.fftn(x, dim=(1, 2, 3)).imag, (2, 3)),
    "back_from_other_frequencies": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x).abs() * 1j, s=(3, 4)), (2, 3)),
    "back_to_another_size": (lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2), n=5, dim=2).real, (2,)),
}


@pytest.mark.parametrize("name", slow_except(TRANSFORMS.keys() - {"fft", "ifft", "rfft", "fft2"}, TRANSFORMS))
def test_every_frequency_sees_every_position(name: str) -> None:
    function, axes = TRANSFORMS[name]

    def twin(y: Tensor, x: Tensor) -> Tensor:
        y = tokens(y) if "tokens" in name else y
        return y.mean(axes, keepdim=True).expand(y.shape).mean(axes, keepdim=True).expand(function(x).shape)

    check(function, twin, SIZE)


def test_a_transform_over_channels_mixes_channels() -> None:
    check(lambda x: torch.fft.fft(x, dim=1).real, lambda y, x: y, SIZE, {"fft_fft": Operation.CHANNEL_MIX})


THERE_AND_BACK: dict[str, Callable[[Tensor], Tensor]] = {
    "two_axes": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), s=(3, 4), norm="ortho"),
    "one_axis": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2), dim=2).real,
    "padded": lambda x: torch.fft.irfft(torch.fft.rfft(x, n=9), n=9)[..., :4],
    "tokens": lambda x: torch.fft.irfft(torch.fft.rfft(tokens(x), dim=1), n=12, dim=1).transpose(1, 2).view_as(x),
}


@pytest.mark.parametrize("name", THERE_AND_BACK)
def test_there_and_back_leaves_labels_alone(name: str) -> None:
    check(THERE_AND_BACK[name], lambda y, x: y, SIZE)


@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_global_filter(order: tuple[int, int]) -> None:
    """GFNet: a circular convolution, one position at a time, by |K| averaged over channels."""
    size, halved = ((5, 4), (5, 3)) if order == (2, 3) else ((4, 5), (3, 4))
    filters = nn.Parameter(torch.randn(3, *halved, 2))

    def function(x: Tensor, filters: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=order, norm="ortho") * torch.view_as_complex(filters)
        return torch.fft.irfft2(spectrum, s=size, dim=order, norm="ortho")

    def twin(y: Tensor, x: Tensor) -> Tensor:
        back = torch.fft.irfft2(torch.view_as_complex(filters.double())[None], s=size, dim=order)
        kernel = back[0].abs().mean(0)
        out = torch.zeros_like(y[:, 0])
        for i, j, k, m in product(range(5), range(4), range(5), range(4)):
            out[:, i, j] += kernel[(i - k) % 5, (j - m) % 4] * y[:, 0, k, m]
        return (out / kernel.sum()).unsqueeze(1).expand(-1, 3, -1, -1)

    operations = {"fft_irfft2": Operation.SPATIAL_MIX, "mul": Operation.POINTWISE}
    check(function, twin, (3, 5, 4), operations, filters=filters)


def test_long_convolution() -> None:
    """Hyena: twice the length, so that nothing wraps around, and no position sees a later one."""
    kernel = nn.Parameter(torch.randn(4, 12))

    def function(x: Tensor, kernel: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x.flatten(2), n=24) * torch.fft.rfft(kernel, n=24)
        return torch.fft.irfft(spectrum, n=24)[..., :12]

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weight = kernel.detach().double().abs().mean(0)
        rows = [(label_rows(y)[:, : i + 1] * weight[: i + 1].flip(0)).sum(1) / weight[: i + 1].sum() for i in range(12)]
        return torch.stack(rows, 1).unsqueeze(1).expand(-1, 4, -1)

    check(function, twin, (4, 3, 4), kernel=kernel)


def test_a_filter_of_the_image_is_no_convolution() -> None:
    """A filter that depends on the image: every position sees every other."""

    def function(x: Tensor) -> Tensor:
        spectrum = torch.fft.fft(x, dim=3)
        return torch.fft.ifft(spectrum * x.mean((2, 3), keepdim=True), dim=3).real

    check(function, lambda y, x: y.mean(3, keepdim=True).expand_as(y), SIZE)
