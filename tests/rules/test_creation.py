"""Values made in the shape of others hold no content; random masks leave labels alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rule_harness import Probe, check, tokens, unchanged
from torch import Tensor, nn

from tlfx.propagate.values import Role

SIZE = (4, 3, 4)
CREATED: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "empty_like": lambda x: torch.empty_like(x).zero_(),
    "full_like": lambda x: torch.full_like(x, 0.3),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 5),
    "new_zeros": lambda x: x.new_zeros(x.shape),
    "new_ones": lambda x: x.new_ones(2, 3),
    "new_full": lambda x: x.new_full((2, 3), 0.5),
    "new_empty": lambda x: x.new_empty(x.shape[0], 1, 1, 1).fill_(1),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "zero_": lambda x: x.clone().zero_(),
    "fill_": lambda x: x.clone().fill_(0.5),
    "uniform_": lambda x: x.clone().uniform_(),
    "normal_": lambda x: x.clone().normal_(),
    "random_": lambda x: x.clone().random_(3),
    "exponential_": lambda x: x.clone().exponential_(),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.5),
    "fill": lambda x: torch.fill(x, 1.0),
    "zeros": lambda x: torch.zeros(x.shape[0], 4, 3, 4),
    "arange": lambda x: torch.arange(4.0),
    "linspace": lambda x: torch.linspace(0, 1, 4),
    "eye": lambda x: torch.eye(3, 4),
    "meshgrid": lambda x: torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")),
}


@pytest.mark.parametrize("name", CREATED)
def test_what_is_created_holds_no_content(name: str) -> None:
    assert Probe(lambda x: (x, CREATED[name](x)), SIZE).roles == [Role.CONTENT, Role.CONSTANT]


def drop_path(x: Tensor) -> Tensor:
    """A branch dropped for whole samples (timm)."""
    return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.6).div_(0.6)


CHANCE: dict[str, Callable[[Tensor], Tensor]] = {
    "drop_path": drop_path,
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "mask": lambda x: x * (torch.rand(x.shape[0], 1, 3, 4) > 0.3),
    "dropout": F.dropout,
    "dropout_": lambda x: F.dropout(x.clone(), inplace=True),
    "dropout2d": F.dropout2d,
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=True),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full((4, 1, 1), 0.5)),
    "multinomial": lambda x: x * torch.multinomial(torch.ones(5), 4).view(4, 1, 1),
    "mask_token": lambda x: torch.where(torch.rand(x.shape[0], 1, 3, 4) < 0.5, x, torch.zeros(1, 4, 1, 1)),
    "position": lambda x: x + torch.arange(4.0) / 4 + torch.eye(3, 4),
    "overwritten": lambda x: x + x.clone().zero_(),
}


@pytest.mark.parametrize("name", CHANCE)
def test_chance_and_constants_leave_labels_alone(name: str) -> None:
    check(CHANCE[name], unchanged, SIZE)


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: torch.zeros_like(x).bernoulli_(x.sigmoid()),
    "normal": lambda x: torch.normal(x, 0.1),
    "normal_of_deviations": lambda x: torch.normal(1.0, x.abs()),
    "normal_of_both": lambda x: torch.normal(x, x.abs()),
    "poisson": lambda x: torch.poisson(x.abs()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_chance_with_parameters_of_the_image_is_content(name: str) -> None:
    check(DRAWN[name], unchanged, SIZE)


def test_tokens_made_in_the_forward_have_the_share_of_the_image() -> None:
    """Positions joined as tokens are tokens without content: λ (eq. 5); zeros are padding."""

    def share(y: Tensor) -> Tensor:
        return y.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 2, 4)

    places = torch.arange(8.0).view(1, 2, 4)
    check(
        lambda x: torch.cat((places.expand(x.shape[0], -1, -1), tokens(x)), 1),
        lambda y, x: torch.cat((share(y), tokens(y)), 1),
        SIZE,
    )
    check(
        lambda x: torch.cat((x.new_zeros(x.shape[0], 2, 4), tokens(x)), 1),
        lambda y, x: torch.cat((share(y) * torch.nan, tokens(y)), 1),
        SIZE,
    )


def test_a_buffer_that_the_forward_assigns() -> None:
    """A model that keeps what it saw: the buffer is assigned, labels are none of its business."""

    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.detach().mean()
            return x * 2

    probe = check(lambda x, keeper: keeper(x), unchanged, SIZE, keeper=Keeper())
    torch.testing.assert_close(probe.net.keeper.seen, probe.images.mean())


def test_sizes_are_numbers() -> None:
    """Arithmetic on sizes and on their count."""
    check(
        lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1) / x.numel() * x.size(0),
        lambda y, x: y.reshape(y.shape[0], 12, 4),
        SIZE,
    )
