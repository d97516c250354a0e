"""Photos and their mixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tlfx.analysis.pairs import MIXERS, mixed, photo_pairs
from tlfx.analysis.photos import SHIPPED, fitted, normalised, open_photo, shipped_photo
from tlfx.errors import InputError


def two_images() -> tuple[Tensor, Tensor]:
    """Random images."""
    first, second = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    return first, second


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_mask_tells_which_pixel_is_whose(mixer: str) -> None:
    first, second = two_images()
    pair = mixed(first, second, mixer, seed=2, patch=8)
    expected = pair.mask[0] * first + (1 - pair.mask[0]) * second
    torch.testing.assert_close(pair.mixed[0], expected)
    assert 0 < float(pair.area[0]) < 1
    assert (pair.mask.unique().numel() == 1) == (mixer == "mixup")


def test_the_same_for_the_same_seed_and_nothing_else_is_drawn() -> None:
    first, second = two_images()
    np.random.seed(11)
    torch.manual_seed(11)
    one, other, third = (mixed(first, second, seed=seed).mask for seed in (4, 4, 5))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    drawn = np.random.rand(), torch.rand(1).item()
    np.random.seed(11)
    torch.manual_seed(11)
    assert drawn == (np.random.rand(), torch.rand(1).item())


def test_an_unknown_mixer() -> None:
    with pytest.raises(InputError, match="mixer 'blend' is unknown, expected one of cutmix, mixup, blocks, patches"):
        mixed(*two_images(), "blend")


def test_pairs_of_different_photos() -> None:
    pairs = photo_pairs(4, (24, 16), seed=1)
    assert pairs.mixed.shape == (4, 3, 24, 16)
    assert pairs.mask.shape == (4, 1, 24, 16)
    torch.testing.assert_close(pairs.mixed, pairs.mask * pairs.first + (1 - pairs.mask) * pairs.second)
    assert len({float(x) for x in pairs.area}) == 4
    assert (pairs.first - pairs.second).abs().mean((1, 2, 3)).min() > 0.01
    again = photo_pairs(4, (24, 16), seed=1)
    assert torch.equal(pairs.mixed, again.mixed)
    assert torch.equal(pairs[2].mask, pairs.mask[2:3])


@pytest.mark.parametrize("name", SHIPPED)
def test_photos_come_in_the_package(name: str) -> None:
    photo = shipped_photo(name)
    assert photo.shape[0] == 3
    assert 0 <= float(photo.min()) < 0.1 < 0.9 < float(photo.max()) <= 1


def test_the_middle_of_a_photo() -> None:
    photo = torch.zeros(3, 20, 40)
    photo[..., 10:30] = 1  # the middle square
    assert torch.equal(fitted(photo, (20, 20)), torch.ones(3, 20, 20))
    assert fitted(photo, (7, 30)).shape == (3, 7, 30)


def test_files(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo = open_photo(tmp_path / "a.png")
    torch.testing.assert_close(photo * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())
    with pytest.raises(InputError, match=r"there is no image file '.*b\.png'"):
        open_photo(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("text")
    with pytest.raises(InputError, match=r"c\.png' cannot be read as an image .* expected a PNG, JPEG or similar file"):
        open_photo(tmp_path / "c.png")


def test_normalised_as_the_model_says() -> None:
    model, images = nn.Identity(), torch.full((2, 3, 1, 1), 0.5)
    assert normalised(images, model)[0, 0, 0, 0] == pytest.approx((0.5 - 0.485) / 0.229)
    model.default_cfg = {"mean": (0.5, 0.5, 0.25), "std": (0.5, 0.5, 0.125)}  # type: ignore[assignment]
    assert normalised(images, model)[1].flatten().tolist() == [0.0, 0.0, 2.0]
