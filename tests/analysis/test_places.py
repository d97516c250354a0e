"""Tokens are found where their pixels were, in whatever order and layout they lie."""

from __future__ import annotations

import pytest
import torch
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from twins.families import FAMILIES

from tlfx.analysis.places import grid
from tlfx.analysis.probe import Probe
from tlfx.errors import InputError


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_grid_in_any_order(height: int, width: int, others: int, chance: object) -> None:
    """Shuffled tokens, some of which lie nowhere, are put back in rows and columns."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((y.flatten() / 7 + 0.05, x.flatten() / 3), 1).double()
    places = torch.cat((places, torch.full((others, 2), torch.nan)))
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(chance.randrange(2**31)))  # type: ignore[attr-defined]
    places_of_tokens = grid(places[order])
    assert places_of_tokens is not None
    assert torch.equal(order[places_of_tokens], torch.arange(height * width).view(height, width))


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([[0.5, 0.25], [0.5, 0.25]], id="two in one place"),
        pytest.param([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], id="a corner is missing"),
        pytest.param([[torch.nan, torch.nan]], id="nowhere"),
    ],
)
def test_no_grid(places: list[list[float]]) -> None:
    assert grid(torch.tensor(places)) is None


SIZES = {
    "vit": ([(4, 4)] * 3, 1),
    "vit-registers": ([(4, 4)] * 3, 5),
    "vit-average": ([(4, 4)] * 3, 0),
    "deit-distilled": ([(4, 4)] * 3, 2),
    "mixer": ([(4, 4)] * 3, 0),
}


@pytest.mark.parametrize("name", slow_except(("vit-registers", "mixer"), SIZES))
def test_plain_models(name: str) -> None:
    """Patches follow one another row by row, class and register tokens come first."""
    family = FAMILIES[name]
    sizes, others = SIZES[name]
    layers = Probe(family.model(), (3, family.size, family.size)).layers
    assert [layer.size for layer in layers] == sizes
    for layer in layers:
        assert layer.others.tolist() == list(range(others))
        assert torch.equal(layer.grid.flatten(), torch.arange(others, others + layer.grid.numel()))


@pytest.mark.parametrize("name", slow_except(["resnet-basic"], ["swin", "pvt-v2", "convnext", "resnet-basic"]))
def test_pyramids(name: str) -> None:
    """Shifted windows, merged patches, strides and padding leave rows and columns in order."""
    family = FAMILIES[name]
    layers = Probe(family.model(), (3, family.size, family.size)).layers
    sides = [layer.size[0] for layer in layers]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] > sides[-1] > 0
    for layer in layers:
        assert torch.equal(layer.grid.flatten(), torch.arange(layer.grid.numel()))
        assert not len(layer.others)


class Windows(nn.Module):
    """Attention in windows of 2×2, with the skip path second and the output left in windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.mixing = Attention()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.mixing(window_partition(self.patches(images).permute(0, 2, 3, 1), (2, 2)).flatten(1, 2))
        return window_reverse(tokens.unflatten(1, (2, 2)), (2, 2), 4, 6).mean((1, 2))


class Attention(nn.Module):
    """Attention whose queries and keys are the tokens themselves."""

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens + tokens


def test_windows_are_put_together() -> None:
    (layer,) = Probe(Windows(), (3, 16, 24)).layers
    assert layer.path == "mixing"
    numbers = torch.arange(24.0).view(1, 4, 6, 1)
    assert torch.equal(window_partition(numbers, (2, 2)).flatten()[layer.grid], numbers[0, :, :, 0])


class Halved(nn.Module):
    """Attention without a skip path, whose queries are every second column, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixing = nn.Conv2d(3, 8, 4, 4), Downsample()

    def forward(self, images: Tensor) -> Tensor:
        return self.mixing(self.patches(images).flatten(2).transpose(1, 2)).mean(1)


class Downsample(nn.Module):
    """Queries are every second token."""

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens[:, ::2] @ tokens.transpose(1, 2)).softmax(-1) @ tokens


def test_what_comes_out_of_attention_lies_where_its_query_does() -> None:
    (layer,) = Probe(Halved(), (3, 12, 24), ["mixing"]).layers
    assert torch.equal(layer.grid, torch.arange(9).view(3, 3))


def test_attention_by_itself_has_the_grid_of_its_block() -> None:
    family = FAMILIES["vit"]
    (layer,) = Probe(family.model(), (3, 32, 32), ["blocks.1.attn"]).layers
    assert torch.equal(layer.grid.flatten(), torch.arange(1, 17))


class Residual(nn.Module):
    """A residual connection around modules that may hold others."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_a_block_is_the_outer_of_two_residual_modules_but_not_of_several() -> None:
    def conv() -> nn.Module:
        return nn.Conv2d(4, 4, 3, padding=1)

    nested, several = Residual(conv(), Residual(conv())), Residual(Residual(conv()), Residual(conv()))
    layers = Probe(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nested, several), (3, 16, 16)).layers
    assert [layer.path for layer in layers] == ["1", "2.inner.0", "2.inner.1"]


def test_patterns_that_fit_nothing() -> None:
    with pytest.raises(
        InputError, match=r"no module with tokens matches 'block.1'; similar names are blocks.1"
    ) as raised:
        Probe(FAMILIES["vit"].model(), (3, 32, 32), ["block.1"])
    assert "blocks.0" in str(raised.value)


def test_tokens_that_lie_on_no_grid() -> None:
    class Hidden(nn.Module):
        """Token mixing without a skip path: what comes out has no place."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.mixing = nn.Conv2d(3, 8, 8, 8), nn.Linear(16, 12)

        def forward(self, images: Tensor) -> Tensor:
            return self.mixing(self.patches(images).flatten(2)).mean(2)

    with pytest.raises(InputError, match=r"the tokens of mixing form no grid on the image; choose modules that return"):
        Probe(Hidden(), (3, 32, 32), ["mixing"])
