"""`tlfx.mix.RandomPatchMix` and `BlockMix` against slow twins, and images that are not made of patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from batches import CLASSES, batch, seeded, shaped
from hypothesis import given, settings
from hypothesis import strategies as st

from tlfx.errors import InputError
from tlfx.mix import BlockMix, RandomPatchMix
from tlfx.mix.draws import Draws


def grid(masks: torch.Tensor, size: int) -> torch.Tensor:
    """Masks by patches, bool (count, rows, columns), checked to be constant in each."""
    patches = masks[:, 0].unfold(1, size, size).unfold(2, size, size)
    assert torch.equal(patches.amin((-2, -1)), patches.amax((-2, -1)))
    return patches[..., 0, 0].bool()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0, 5.0]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
)
def test_as_many_random_patches_as_drawn(seed: int, alpha: float, rows: int, columns: int, size: int) -> None:
    mixer = RandomPatchMix(patch_size=size, alpha=alpha, generator=seeded(seed))
    kept = grid(mixer.masks(shaped(6, rows * size, columns * size)), size)
    lams = Draws(seeded(seed)).shares(alpha, 6)[:, 0].tolist()
    assert kept.shape == (6, rows, columns)
    assert (~kept).flatten(1).sum(1).tolist() == [round((1 - lam) * rows * columns) for lam in lams]


def test_every_patch_is_replaced_equally_often() -> None:
    kept = grid(RandomPatchMix(patch_size=1, generator=seeded()).masks(shaped(6000, 3, 4)), 1)
    torch.testing.assert_close(kept.float().mean(0), torch.full((3, 4), 0.5), atol=0.03, rtol=0)


def beit_blocks(
    draws: Draws, wanted: int, rows: int, columns: int, min_block: int, min_aspect: float
) -> list[list[bool]]:
    """Algorithm 1 of BEiT, patch by patch, for `wanted` patches."""
    masked = [[False] * columns for _ in range(rows)]
    while (left := wanted - sum(map(sum, masked))) > 0:
        done = False
        for u_area, u_aspect, u_top, u_left in draws.uniform(10, 4).tolist():
            low = min(min_block, left)
            area = low + u_area * (left - low)
            ratio = math.exp(math.log(min_aspect) + u_aspect * (math.log(1 / min_aspect) - math.log(min_aspect)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if not (1 <= height <= rows and 1 <= width <= columns):
                continue
            top, side = math.floor(u_top * (rows - height + 1)), math.floor(u_left * (columns - width + 1))
            block = [(y, x) for y in range(top, top + height) for x in range(side, side + width)]
            new = [place for place in block if not masked[place[0]][place[1]]]
            if 0 < len(new) <= left:
                for y, x in new:
                    masked[y][x] = True
                done = True
                break
        if not done:
            break
    return masked


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0, 5.0]),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([0.3, 1.0]),
)
def test_blocks_are_those_of_beit(
    seed: int, alpha: float, rows: int, columns: int, min_block: int, min_aspect: float
) -> None:
    mixer = BlockMix(patch_size=2, alpha=alpha, min_block=min_block, min_aspect=min_aspect, generator=seeded(seed))
    kept = grid(mixer.masks(shaped(3, rows * 2, columns * 2)), 2)
    draws = Draws(seeded(seed))
    for mask, lam in zip(kept, draws.shares(alpha, 3)[:, 0].tolist(), strict=True):
        wanted = round((1 - lam) * rows * columns)
        assert int((~mask).sum()) <= wanted
        assert (~mask).tolist() == beit_blocks(draws, wanted, rows, columns, min_block, min_aspect)


def test_blocks_come_near_the_share_that_was_drawn() -> None:
    mixer, draws = BlockMix(generator=seeded()), Draws(seeded())
    kept = grid(mixer.masks(shaped(200, 224, 224)), 16)
    lams = draws.shares(1.0, 200)[:, 0]
    gaps = kept.flatten(1).float().mean(1) - lams
    assert float(gaps.min()) > -0.01  # never more is replaced than was drawn
    assert float(gaps.mean()) < 0.02


def test_blocks_are_less_scattered_than_random_patches() -> None:
    def edges(mixer: Any) -> float:
        kept = grid(mixer.masks(shaped(100, 56, 56)), 4).float()
        return float(kept.diff(dim=1).abs().mean() + kept.diff(dim=2).abs().mean())

    blocks = edges(BlockMix(patch_size=4, generator=seeded()))
    assert blocks < 0.6 * edges(RandomPatchMix(patch_size=4, generator=seeded()))


@pytest.mark.parametrize("mixer", [RandomPatchMix, BlockMix])
def test_images_that_are_not_made_of_patches(mixer: Any) -> None:
    with pytest.raises(InputError, match=r"images of 12×8 do not divide into patches of 5×5; resize them, or pass"):
        mixer(patch_size=5, num_classes=CLASSES)(*batch())
    with pytest.raises(InputError, match="do not divide into patches of 16×16"):
        mixer(num_classes=CLASSES)(*batch())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_size": 0}, "patch_size is 0, expected the model's patch size in pixels, such as 16"),
        ({"min_block": 0}, "min_block is 0, expected a number of patches, at least 1"),
        ({"min_aspect": 0.0}, r"min_aspect is 0.0, expected a ratio of sides in \(0, 1\]"),
        ({"min_aspect": 2.0}, "min_aspect is 2.0"),
    ],
)
def test_arguments_that_no_mixing_can_follow(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BlockMix(**arguments)
