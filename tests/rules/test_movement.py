"""Data movement: labels go where the operator itself brings them, and nothing else happens to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import check, check_moves, groups, listed, random_mask, several, tokens
from torch import Tensor, nn

from tlfx import Operation, ProvenanceError, RuleError

aten = torch.ops.aten
SIZE = (4, 4, 6)

MOVEMENTS: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda x: x.view(x.shape[0], 2, 2, 4, 6),
    "view_as_the_same_type": lambda x: x.view(x.dtype),
    "reshape_merged_batch": lambda x: tokens(x).reshape(-1, 2, 8),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(3, (2, 3)),
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "transpose": lambda x: x.transpose(0, 2),
    "swapaxes": lambda x: x.swapaxes(-1, 1),
    "swapdims": lambda x: x.swapdims(-1, 1),
    "movedim": lambda x: x.movedim(1, -1),
    "moveaxis": lambda x: torch.moveaxis(x, (1, 2), (2, 1)),
    "matrix_transpose": lambda x: x.mT,
    "adjoint": lambda x: x.adjoint(),
    "t": lambda x: x.flatten(1).t(),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze_all": lambda x: x[:, :1].squeeze(),
    "squeeze_several": lambda x: x[:, :1, :1].squeeze((1, 2)),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1),
    "broadcast_to": lambda x: x[:, :1].broadcast_to(x.shape),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "view_as": lambda x: x.view_as(x.transpose(1, 2).contiguous()),
    "reshape_as": lambda x: x.permute(0, 3, 1, 2).reshape_as(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: x.tile(2, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=2),
    "repeat_interleave_counts": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 3]), dim=2, output_size=6),
    "repeat_batch_interleaved": lambda x: x.repeat_interleave(3, 0),
    "slice": lambda x: x[:, 1:, ::2, -3:],
    "ellipsis": lambda x: x[..., None, 2:5],
    "select": lambda x: x[:, 2],
    "narrow": lambda x: x.narrow(3, 1, 4),
    "split": lambda x: x.split(4, 3),
    "split_with_sizes": lambda x: x.split([1, 2, 3], -1),
    "tensor_split": lambda x: x.tensor_split(4, 3),
    "tensor_split_at": lambda x: x.tensor_split((1, 5), 3),
    "chunk": lambda x: x.chunk(3, 2),
    "unbind": lambda x: x.unbind(2),
    "hsplit": lambda x: x.hsplit(2),
    "dsplit": lambda x: x.dsplit(2),
    "tensor_unfold": lambda x: x.unfold(2, 3, 1).unfold(3, 2, 2),
    "as_strided": lambda x: x.contiguous().as_strided((len(x), 3, 2), (96, 2, 5), 1),
    "as_strided_copy": lambda x: torch.as_strided_copy(x.contiguous(), (len(x), 4), (96, 3)),
    "as_strided_part": lambda x: x.contiguous()[:, 1:].as_strided((len(x), 3, 2), (96, 1, 24)),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "roll_flat_sample": lambda x: x.flatten(1).roll(5, 1),
    "flip": lambda x: x.flip((2, 3)),
    "fliplr": lambda x: x.fliplr(),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "ravel": lambda x: x.ravel().view(x.shape),
    "fftshift": lambda x: torch.fft.fftshift(x, dim=(2, 3)),
    "contiguous": lambda x: x.transpose(2, 3).contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "type": lambda x: x.to(torch.float64).to(torch.float32).type_as(x),
    "positive": lambda x: +x,
    "stack": lambda x: torch.stack((x, x.flip(2)), 1),
    "stack_last": lambda x: torch.stack(x.unbind(3), -1),
    "cat_tokens": lambda x: torch.cat((x, x[:, :, :2].flip(2)), 2),
    "cat_channels": lambda x: torch.cat((x, x.flip(3)), 1),
    "concat_with_nothing": lambda x: torch.concat((torch.zeros(0), x), 1),
    "copy": lambda x: torch.empty_like(x).copy_(x.flip(2)),
    "unfold_patches": lambda x: F.unfold(x, (2, 3), stride=2),
    "unfold_dilated": lambda x: F.unfold(x, 2, dilation=(1, 3)),
    "atleast_3d": lambda x: torch.atleast_3d(x),
}


@pytest.mark.parametrize("names", groups(list(MOVEMENTS)))
def test_movements(names: Sequence[str]) -> None:
    check_moves(lambda x: [y for name in names for y in listed(MOVEMENTS[name](x))], SIZE)


@pytest.mark.parametrize("axis", range(5))
def test_diag_embed_leaves_the_rest_without_content(axis: int) -> None:
    def function(x: Tensor) -> Tensor:
        return x.diag_embed(dim1=axis, dim2=-1 if axis < 4 else 0)

    check(function, lambda y, x: function(y).masked_fill(function(torch.ones_like(y)) == 0, torch.nan), SIZE)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "pad", [(1, 2, 0, 3), *(pytest.param(pad, marks=pytest.mark.slow) for pad in ((2, 0), (1, 1, 1, 1)))]
)
def test_padding_by_copies(mode: str, pad: tuple[int, ...]) -> None:
    size = SIZE if len(pad) == 4 else (4, 6)
    check_moves(lambda x: F.pad(x.view(x.shape[0], *size), pad, mode), SIZE if len(pad) == 4 else (4, 1, 6))


def test_replication_padding_module() -> None:
    check_moves(lambda x, pad: pad(x), SIZE, pad=nn.ReplicationPad2d(1))


@several(10)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.floats(-1, 1))
def test_constant_padding_has_no_content(pad: list[int], fill: float) -> None:
    pad = pad[: len(pad) // 2 * 2]
    check(lambda x: F.pad(x, pad, value=fill), lambda y, x: F.pad(y, pad, value=torch.nan), SIZE)


@several(10)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2))
def test_im2col(kernel: int, stride: int, padding: int, dilation: int) -> None:
    def function(x: Tensor) -> Tensor:
        return F.unfold(x, kernel, dilation, padding, stride)

    check(function, lambda y, x: function(y).masked_fill(function(torch.ones_like(y)) == 0, torch.nan), (2, 6, 7))


@several(10)
@given(st.permutations(range(5)), st.integers(0, 4), st.integers(-3, 3))
def test_movements_follow_each_other(order: list[int], axis: int, shift: int) -> None:
    def function(x: Tensor) -> Tensor:
        parts = x.unflatten(3, (2, 3)).permute(order)
        return parts.roll(shift, axis) if order[axis] != 0 else parts

    check_moves(function, SIZE)


@several(10)
@given(st.permutations([2, 3, 4, 5]), st.sampled_from([(2, 2), (4, 3), (2, 6), (1, 3)]), st.booleans())
def test_windows(order: list[int], window: tuple[int, int], channels_last: bool) -> None:
    """Windows merged with the batch and cut back out of it."""
    down, across = 4 // window[0], 6 // window[1]

    def function(x: Tensor) -> Tensor:
        cut = x.view(-1, 4, down, window[0], across, window[1]).permute(0, 2, 4, 3, 5, 1).reshape(-1, *window, 4)
        cut = cut if channels_last else cut.permute(0, 3, 1, 2)
        return cut.roll(1, 2)

    check_moves(function, SIZE)

    def back(x: Tensor) -> Tensor:
        cut = x.view(-1, 4, down, window[0], across, window[1]).permute(0, 2, 4, 3, 5, 1).reshape(-1, *window, 4)
        return cut.view(-1, down, across, *window, 4).permute(0, *order, 1).flatten(1, 2)

    check_moves(back, SIZE)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_tokens_without_content_get_the_share_of_the_image(count: int, first: bool) -> None:
    """Class, distillation and register tokens: λ (eq. 5)."""

    def function(x: Tensor, token: Tensor) -> Tensor:
        parts = (token.expand(x.shape[0], -1, -1), tokens(x))
        return torch.cat(parts if first else parts[::-1], 1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        share = y.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, count, 4)
        return torch.cat((share, tokens(y)) if first else (tokens(y), share), 1)

    check(function, twin, SIZE, {"cat": Operation.LAYOUT}, token=nn.Parameter(torch.randn(1, count, 4)))


def test_class_token_beside_tokens_in_the_middle_of_the_batch() -> None:
    """Tokens first, batch second: the joined tokens belong to every sample."""

    def function(x: Tensor, token: Tensor) -> Tensor:
        return torch.cat((token.expand(1, x.shape[0], 4), tokens(x).transpose(0, 1)))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return torch.cat((y.mean((1, 2, 3)).view(1, -1, 1).expand(1, -1, 4), tokens(y).transpose(0, 1)))

    check(function, twin, SIZE, token=nn.Parameter(torch.randn(1, 1, 4)))


def test_class_token_joins_every_window() -> None:
    """Windows merged with the batch get a token each, of their own image's share."""

    def function(x: Tensor, token: Tensor) -> Tensor:
        cut = x.view(-1, 4, 2, 2, 6).transpose(1, 2).reshape(-1, 4, 12).transpose(1, 2)
        return torch.cat((token.expand(cut.shape[0], -1, -1), cut), 1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        cut = y.view(-1, 4, 2, 2, 6).transpose(1, 2).reshape(-1, 4, 12).transpose(1, 2)
        share = y.mean((1, 2, 3)).repeat_interleave(2).view(-1, 1, 1).expand(-1, 1, 4)
        return torch.cat((share, cut), 1)

    check(function, twin, SIZE, token=nn.Parameter(torch.randn(1, 1, 4)))


def test_constants_joined_as_channels_have_no_content() -> None:
    """Coordinates beside the channels of every token."""

    def function(x: Tensor, place: Tensor) -> Tensor:
        return torch.cat((x, place.expand(x.shape[0], -1, -1, -1)), 1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return F.pad(y, (0, 0, 0, 0, 0, 2), value=torch.nan)

    check(function, twin, SIZE, place=torch.randn(1, 2, 4, 6))


def test_channels_without_content_do_not_change_a_contraction() -> None:
    """A 1x1 convolution over content and coordinates keeps the label of the content."""

    def function(x: Tensor, place: Tensor, conv: nn.Module) -> Tensor:
        return conv(torch.cat((x, place.expand(x.shape[0], -1, -1, -1)), 1))

    parts = {"place": torch.randn(1, 2, 4, 6), "conv": nn.Conv2d(6, 5, 1)}
    check(function, lambda y, x: y[:, :1].expand(-1, 5, -1, -1), SIZE, {"conv2d": Operation.CHANNEL_MIX}, **parts)


def test_complex_numbers_are_channels() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(1, (2, 2)).movedim(1, -1).contiguous()))

    check_moves(function, SIZE)


def test_parts_of_a_complex_number_share_a_label() -> None:
    """Two pixels as real and imaginary part: the average of both."""
    check(
        lambda x: torch.view_as_real(torch.view_as_complex(x.view(-1, 4, 4, 3, 2))),
        lambda y, x: y.view(-1, 4, 4, 3, 2).mean(-1, keepdim=True).expand(-1, -1, -1, -1, 2),
        SIZE,
    )


@pytest.mark.parametrize("function", [torch.tril, torch.triu])
def test_outside_a_triangle_is_no_content(function: Callable[[Tensor], Tensor]) -> None:
    kept = function(torch.ones(SIZE[1:])) > 0
    check(lambda x: function(x), lambda y, x: y.masked_fill(~kept, torch.nan), SIZE)


def test_a_write_through_a_view_reaches_its_base() -> None:
    """In-place copies into a slice of the images move labels there."""

    def function(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, :2].copy_(x[:, :, 2:].clone())
        return x

    check_moves(function, SIZE)


def test_a_constant_is_filled_piece_by_piece() -> None:
    """Slices written one after another; zeros that nothing writes to are padding, without a label."""

    def function(x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 4, 6, 6)
        out[:, :, :2] = x[:, :, 2:]
        out[:, :, 4:] = x[:, :, :2].flip(3)
        return out

    def twin(y: Tensor, x: Tensor) -> Tensor:
        out = torch.full((len(y), 4, 6, 6), torch.nan, dtype=y.dtype)
        out[:, :, :2], out[:, :, 4:] = y[:, :, 2:], y[:, :, :2].flip(3)
        return out

    check(function, twin, SIZE)


def test_mixing_samples_is_an_error() -> None:
    """A value that holds two samples on one axis has no label."""
    with pytest.raises(ProvenanceError, match="mixes the samples of a batch"):
        check_moves(lambda x: tokens(x).roll(1, 0).cumsum(1), SIZE)


def test_as_strided_reads_and_writes_nothing_but_its_input() -> None:
    def written(x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        out.as_strided((len(x), 4, 2), (96, 24, 3)).copy_(x[:, :, 0, :2])
        return out

    check_moves(written, SIZE)
    with pytest.raises(RuleError, match="reads memory outside its input: call it on the whole tensor"):
        check_moves(lambda x: x.contiguous()[:, 1:].as_strided((len(x), 4), (96, 24), 0), SIZE)
    with pytest.raises(ProvenanceError, match="mixes the samples of a batch"):
        check_moves(lambda x: x.contiguous().as_strided((len(x), 97), (95, 1)), SIZE)


def test_random_masks_differ() -> None:
    """The masks of the harness tell every pixel of every sample apart."""
    mask = random_mask(SIZE, seed=1)
    assert len(mask.unique()) == mask.numel()
