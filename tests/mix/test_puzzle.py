"""`tlfx.mix.PuzzleMix`: its choices and moves against all that there are, on small grids."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from batches import CLASSES, batch, numbered, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tlfx
from tlfx.errors import InputError, TargetError
from tlfx.mix import PuzzleMix
from tlfx.mix.cut import minimum_cut
from tlfx.mix.draws import Draws
from tlfx.mix.puzzle import gradient_saliency


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    return images.float().abs().mean(1)


def choices(rows: int, columns: int) -> Iterator[np.ndarray[Any, Any]]:
    """Every choice of 0 or 1 for each cell of a grid."""
    for bits in itertools.product((0, 1), repeat=rows * columns):
        yield np.array(bits).reshape(rows, columns)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6), st.floats(0.0, 2.0))
def test_no_choice_costs_less_than_the_cut(rows: int, columns: int, seed: int, strength: float) -> None:
    numbers = np.random.RandomState(seed)
    unary = numbers.rand(2, rows, columns)
    down, right = (strength * numbers.rand(2, 2, *s) for s in ((rows - 1, columns), (rows, columns - 1)))
    for cost in (down, right):
        cost[0, 1] += strength  # unlike choices cost no less than like ones
        cost[1, 0] += strength

    def total(choice: np.ndarray[Any, Any]) -> float:
        cells = sum(unary[choice[r, c], r, c] for r in range(rows) for c in range(columns))
        below = sum(down[choice[r, c], choice[r + 1, c], r, c] for r in range(rows - 1) for c in range(columns))
        beside = sum(right[choice[r, c], choice[r, c + 1], r, c] for r in range(rows) for c in range(columns - 1))
        return float(cells + below + beside)

    cut = minimum_cut(unary, down, right)
    assert total(1 - cut.astype(int)) == pytest.approx(min(map(total, choices(rows, columns))), abs=1e-6)


def puzzle_cost(
    choice: np.ndarray[Any, Any],
    salient: np.ndarray[Any, Any],
    pixels: np.ndarray[Any, Any],
    lam: float,
    **weights: float,
) -> float:
    """The paper's cost of a choice, block by block and pixel by pixel: pixels (2, C, H, W) in [0, 1]."""
    n, cost = len(choice), 0.0
    high, wide = pixels.shape[2] // n, pixels.shape[3] // n
    beta = weights["beta"] / n / 16
    for r, c in np.ndindex(n, n):
        z = choice[r, c]
        cost += salient[1 - z, r, c] - weights["eta"] / n**2 * np.log(max([lam, 1 - lam][z], 1e-8))
        if r + 1 < n:
            below, across = choice[r + 1, c], slice(c * wide, (c + 1) * wide)
            gap = np.abs(pixels[z, :, (r + 1) * high - 1, across] - pixels[below, :, (r + 1) * high, across]).mean()
            cost += beta * ((z != below) + weights["gamma"] * gap)
        if c + 1 < n:
            beside, along = choice[r, c + 1], slice(r * high, (r + 1) * high)
            gap = np.abs(pixels[z, :, along, (c + 1) * wide - 1] - pixels[beside, :, along, (c + 1) * wide]).mean()
            cost += beta * ((z != beside) + weights["gamma"] * gap)
    return float(cost)


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize(
    "weights",
    [
        {"beta": 1.2, "gamma": 0.5, "eta": 0.2},
        pytest.param({"beta": 9.0, "gamma": 1.0, "eta": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_blocks_are_chosen_at_the_least_cost(blocks: int, weights: dict[str, Any]) -> None:
    images, labels = batch(4, 6, 12, seed=blocks)
    mixer = PuzzleMix(
        brightness, blocks=blocks, move=None, mode="elem", num_classes=CLASSES, generator=seeded(2), **weights
    )
    mixed, target = mixer(images, labels)
    draws = Draws(seeded(2))
    draws.uniform(4)  # whether to mix
    lams = draws.shares(1.0, 4)[:, 0].tolist()
    pixels = ((images - images.min()) / (images.max() - images.min())).double().numpy()
    salient = brightness(images, labels).unflatten(1, (blocks, -1)).unflatten(-1, (blocks, -1)).mean((2, 4)).double()
    salient = (salient / salient.sum((1, 2), keepdim=True)).numpy()
    for i, lam in enumerate(lams):
        pair = [i, (i - 1) % 4]
        assert torch.equal(mixed[i], torch.where(target.mask[i].bool(), images[i], images[pair[1]]))
        choice = 1 - target.mask[i, 0, :: 6 // blocks, :: 12 // blocks].int().numpy()
        whole = np.repeat(np.repeat(1 - choice, 6 // blocks, 0), 12 // blocks, 1)
        assert np.array_equal(target.mask[i, 0].numpy(), whole)
        costs = [puzzle_cost(z, salient[pair], pixels[pair], lam, **weights) for z in choices(blocks, blocks)]
        assert puzzle_cost(choice, salient[pair], pixels[pair], lam, **weights) == pytest.approx(min(costs), abs=1e-6)


@pytest.mark.parametrize("move", [0.0, 0.05, 0.8])
def test_blocks_move_at_the_least_cost(move: float) -> None:
    """The blocks that are seen in the mixture lie as in one of the cheapest of all orders of four blocks."""
    amounts = torch.rand(6, 1, 2, 2, generator=seeded()) ** 4  # few blocks hold most of what is salient
    amounts = amounts.repeat_interleave(4, 2).repeat_interleave(2, 3)
    images, labels = (amounts * torch.rand(6, 3, 8, 4, generator=seeded())).double(), torch.arange(6)
    mixer = PuzzleMix(brightness, blocks=2, beta=0.0, eta=0.0, move=move, num_classes=6, generator=seeded(2))
    mixed, target = mixer(images, labels)
    salient = brightness(images, labels).unflatten(1, (2, 4)).unflatten(-1, (2, 2)).mean((2, 4)).flatten(1)
    salient = salient / salient.sum(1, keepdim=True)
    moved = 0
    for row, sources in enumerate(target.labels.tolist()):
        first = target.mask[row, 0, ::4, ::2].flatten().bool()
        for source, stays in zip(sources, (first, ~first), strict=True):
            costs = {
                order: sum(
                    move * ((block // 2 - place // 2) ** 2 + (block % 2 - place % 2) ** 2)
                    - float(salient[source, block]) * bool(stays[place])
                    for block, place in enumerate(order)
                )
                for order in itertools.permutations(range(4))
            }
            parts, seen = blocks_of(images[source]), blocks_of(mixed[row])
            possible = [
                order
                for order in costs
                if all(torch.equal(seen[place], parts[b]) for b, place in enumerate(order) if stays[place])
            ]
            assert min(costs[order] for order in possible) == pytest.approx(min(costs.values()))
            moved += (0, 1, 2, 3) not in possible
    assert (moved == 0) if move == 0.8 else (moved > 0)  # 0.8 is too dear


def blocks_of(image: Tensor) -> list[Tensor]:
    """The four blocks of an image (channels, 8, 4), row by row."""
    return [image[:, 4 * r : 4 * r + 4, 2 * c : 2 * c + 2] for r in range(2) for c in range(2)]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_moved_or_not_the_mask_tells_the_image(mode: Any, dtype: torch.dtype) -> None:
    images, labels = numbered(6, 8, 12)
    images = (10 * images + 1).to(dtype)
    pairing: Any = "mirror" if mode == "pair" else "shuffle"
    mixer = PuzzleMix(
        brightness, eta=2.0, move=0.0, mode=mode, pairing=pairing, num_classes=6, prob=0.7, generator=seeded(1)
    )
    for _ in range(3):
        mixed, target = mixer(images, labels)
        assert mixed.dtype == dtype
        expected = torch.where(target.mask.bool(), target.first.view(-1, 1, 1, 1), target.second.view(-1, 1, 1, 1))
        assert torch.equal(mixed, (10 * expected + 1).expand_as(mixed).to(dtype))
    mixer.mixup_enabled = False
    assert torch.equal(mixer(images, labels)[0], images)


def test_gradients_are_salient_and_an_aligned_model_learns() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=CLASSES)
    images, labels = batch(4, 32, 32)
    saliency = gradient_saliency(model)(images, labels)
    image = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(image), labels).backward()
    torch.testing.assert_close(saliency, (image.grad**2).mean(1).sqrt())
    model.zero_grad()
    model = tlfx.align(model)
    with torch.no_grad():  # gradients are taken all the same
        mixed, target = PuzzleMix(gradient_saliency(model), num_classes=CLASSES, generator=seeded(1))(images, labels)
    assert all(p.grad is None for p in model.parameters())
    logits, soft = model(mixed, target)
    torch.nn.functional.cross_entropy(logits, soft).backward()
    torch.testing.assert_close(soft.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("saliency", "words"),
    [
        (lambda x, y: x, r"saliency is of shape \(4, 3, 12, 8\), expected a tensor \(4, 12, 8\), one value per pixel"),
        (lambda x, y: None, "saliency is a NoneType"),
        (lambda x, y: x[:, 0], "saliency holds values from -.* expected finite values of at least 0; take absolute"),
        (lambda x, y: x[:, 0] * torch.nan, "saliency holds values from nan to nan"),
    ],
)
def test_saliency_of_another_form(saliency: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PuzzleMix(saliency, num_classes=CLASSES)(*batch(4))


def test_where_nothing_is_salient_all_is_alike() -> None:
    images, labels = batch(4)
    target = PuzzleMix(lambda x, y: torch.zeros(4, 12, 8), num_classes=CLASSES)(images, labels)[1]
    assert set(target.mask.mean((1, 2, 3)).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blocks": 1}, "blocks is 1, expected a number of blocks along each axis, at least 2"),
        ({"gamma": 1.5}, r"gamma=1.5, .* gamma at most 1, since a minimum cut"),
        ({"eta": -1.0}, r"eta=-1.0, .* expected none below 0"),
        ({"move": -1.0}, r"move=-1.0: expected none below 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
    ],
)
def test_arguments_that_no_mixing_can_follow(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PuzzleMix(brightness, **arguments)


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(InputError, match=r"images of 12×8 do not divide into 5×5 blocks; resize them, or use another"):
        PuzzleMix(brightness, blocks=5, num_classes=CLASSES)(*batch(4))
    with pytest.raises(TargetError, match="labels are a list"):
        PuzzleMix(brightness, num_classes=CLASSES)(batch(4)[0], [0, 1, 2, 3])


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/mix/test_guided.py imports tlfx.mix without it."""
    monkeypatch.setitem(sys.modules, "scipy.sparse.csgraph", None)
    with pytest.raises(InputError, match="PuzzleMix needs SciPy, which is missing"):
        PuzzleMix(brightness)
