"""Branches that run on some samples of the batch, as stochastic depth is written in training code: the labels of each
sample are those of the model with, or without, the branch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_step
from torch import Tensor, nn

import tlfx
from tlfx.errors import ProvenanceError

BATCH, CHOSEN = 5, 3


class Attend(nn.Module):
    """Attention over tokens (batch, n, 8), behind a constant token."""

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.norm, self.packed = nn.LayerNorm(8), nn.Linear(8, 24)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.norm(x)], 1)
        query, key, value = self.packed(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.linear:
            mixed = query.softmax(-1) @ (key.softmax(-2).mT @ value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).flatten(2)[:, 1:]


class Convolve(nn.Module):
    """A convolution over the grid of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.mT.unflatten(2, (4, 4)))
        return out.flatten(2).mT


class Plain(nn.Module):
    """Attention of the chosen tokens themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "attention": Attend,
    "attention without projections": Plain,
    "linear attention": lambda: Attend(linear=True),
    "convolution": Convolve,
    "mixer": lambda: nn.Sequential(nn.LayerNorm(8), nn.Unflatten(1, (16, 1)), nn.Flatten(1), nn.Linear(128, 128)),
}


def by_index(x: Tensor, index: Tensor, branch: nn.Module) -> Tensor:
    return x.index_add(0, index, branch(x[index]), alpha=2)


def flat(x: Tensor, index: Tensor, branch: nn.Module) -> Tensor:
    part = branch(x.index_select(0, index))
    return torch.index_add(x.flatten(1), 0, index, part.flatten(1), alpha=2).view_as(x)


def in_place(x: Tensor, index: Tensor, branch: nn.Module) -> Tensor:
    return x.clone().index_add_(0, index, 2 * branch(x[index]))


class Net(nn.Module):
    """A branch, an MLP for all, and a second branch, each on samples that are drawn at random."""

    def __init__(self, branch: str, add: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.patches, self.head, self.add = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5), add
        self.first, self.second = BRANCHES[branch](), BRANCHES[branch]()

    def branch_of(self, name: str, x: Tensor) -> Tensor:
        branch = getattr(self, name)
        out: Tensor = branch(x)
        return out.view_as(x) if out.shape != x.shape else out

    def run(self, x: Tensor, step: Callable[[str, Tensor], Tensor]) -> Tensor:
        x = step("first", self.patches(x).flatten(2).mT)
        out: Tensor = self.head(step("second", F.gelu(x))[:, 3])
        return out

    def forward(self, x: Tensor) -> Tensor:
        def step(name: str, z: Tensor) -> Tensor:
            index = torch.randperm(len(z), device=z.device)[:CHOSEN]
            return self.add(z, index, lambda part: self.branch_of(name, part))  # type: ignore[arg-type]

        return self.run(x, step)


class Fixed(nn.Module):
    """The same with each branch for all samples, or for none."""

    def __init__(self, net: Net, active: tuple[bool, bool]) -> None:
        super().__init__()
        self.net, self.active = net, dict(zip(("first", "second"), active, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.net.run(x, lambda name, z: z + 2 * self.net.branch_of(name, z) if self.active[name] else z)


def target(mask: Tensor) -> tlfx.MixedTarget:
    zeros = torch.zeros(BATCH, dtype=torch.int64)
    return tlfx.MixedTarget(first=zeros, second=zeros + 1, mask=mask, num_classes=5, smoothing=0.0)


Add = Callable[[Tensor, Tensor, nn.Module], Tensor]
CASES: list[tuple[str, Add, bool]] = [
    *((branch, by_index, False) for branch in BRANCHES),
    ("attention", flat, True),
    ("attention", in_place, False),
]


@pytest.mark.parametrize(("branch", "add", "shared"), CASES)
def test_labels_of_each_sample_are_those_of_its_branches(branch: str, add: Add, shared: bool) -> None:
    net = Net(branch, add)
    images, mask = torch.randn(BATCH, 3, 16, 16), torch.rand(1 if shared else BATCH, 1, 16, 16).round()
    torch.manual_seed(3)
    _, soft = tlfx.align(deepcopy(net))(images, target(mask))
    torch.manual_seed(3)
    active = torch.zeros(BATCH, 2, dtype=torch.bool)
    for layer in range(2):
        active[torch.randperm(BATCH)[:CHOSEN], layer] = True
    for first, second in active.unique(dim=0).tolist():
        rows = (active == torch.tensor([first, second])).all(1)
        _, expected = tlfx.align(Fixed(deepcopy(net), (first, second)))(images, target(mask))
        torch.testing.assert_close(soft[rows], expected[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("add", [by_index, flat, in_place])
def test_outputs_and_gradients_are_those_of_the_plain_model(add: Add) -> None:
    net = Net("attention", add)
    images, mask = torch.randn(BATCH, 3, 16, 16), torch.rand(BATCH, 1, 16, 16)
    assert_same_step(net, tlfx.align(deepcopy(net)), images, target(mask))


def some(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x))[:CHOSEN]]


def at_another_index(x: Tensor) -> Tensor:
    first, second = torch.randperm(len(x))[:CHOSEN], torch.randperm(len(x))[:CHOSEN]
    return x.index_add(0, second, x[first].exp())


def with_repeats(x: Tensor) -> Tensor:
    index = torch.randint(len(x), (CHOSEN,))
    return x.index_add(0, index, x[index].exp())


def of_two(x: Tensor) -> Tensor:
    first, second = torch.randperm(len(x))[:CHOSEN], torch.randperm(len(x))[:CHOSEN]
    return x.index_add(0, first, x[first].exp() + x[second])


def shuffled(x: Tensor) -> Tensor:
    return x + x[torch.randperm(len(x))]


def of_one(x: Tensor) -> Tensor:
    index = torch.randperm(len(x))[:1]
    return x.index_add(0, index, x[index].exp())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (some, "holds some samples of the batch only, so that its labels do not fit the target"),
        (at_another_index, "adds samples of the batch at another index than they were chosen by"),
        (with_repeats, "between the samples of a batch, or by indices that may"),
        (of_two, "combines some samples of the batch with others, or with all"),
        (shuffled, "combines some samples of the batch with others, or with all"),
        (of_one, "takes 1 of 5 samples: the layout of a branch on some samples is known only where it takes two"),
    ],
)
def test_what_does_not_return_to_its_samples_is_refused(function: Callable[[Tensor], Tensor], words: str) -> None:
    class Function(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x).mean((2, 3))

    with pytest.raises(ProvenanceError, match=words):
        tlfx.align(Function())(torch.randn(BATCH, 5, 8, 8), target(torch.rand(BATCH, 1, 8, 8)))


def test_policies_that_read_summands_are_refused() -> None:
    """The operator itself takes the samples of one of them."""
    images, mask = torch.randn(BATCH, 3, 16, 16), torch.rand(BATCH, 1, 16, 16)
    with pytest.raises(tlfx.InputError, match="residual='norm' needs both summands of index_add"):
        tlfx.align(Net("convolution", by_index), policy=tlfx.Policy(residual="norm"))(images, target(mask))
