"""`tlfx.mix.RandomChoice`: which mixer mixes a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import CLASSES, batch, seeded

from tlfx.errors import InputError
from tlfx.mix import CutMix, MixUp, Mixup, RandomChoice


def kinds(mixer: RandomChoice, count: int = 300) -> float:
    """How many batches of all were blended, not pasted."""
    images, labels = batch(2, 4, 4)
    masks = [mixer(images, labels)[1].mask for _ in range(count)]
    return sum(bool(((mask > 0) & (mask < 1)).all()) for mask in masks) / count


def test_mixers_take_turns_by_their_probabilities() -> None:
    def choice(p: list[float] | None) -> RandomChoice:
        mixers = [MixUp(num_classes=CLASSES), CutMix(num_classes=CLASSES)]
        return RandomChoice(mixers, p, generator=seeded())

    assert kinds(choice([1, 0]), 20) == 1.0
    assert kinds(choice([0, 1]), 20) == 0.0
    assert abs(kinds(choice(None)) - 0.5) < 0.1
    assert abs(kinds(choice([3, 1])) - 0.75) < 0.1


def test_the_same_generator_makes_the_same_choices() -> None:
    def masks() -> list[torch.Tensor]:
        generator = seeded(2)
        mixers = [kind(num_classes=CLASSES, generator=generator) for kind in (MixUp, CutMix)]
        mixer = RandomChoice(mixers, generator=generator)
        return [mixer(*batch())[1].mask for _ in range(5)]

    assert all(map(torch.equal, masks(), masks()))


def test_all_are_switched_off_together() -> None:
    mixer = RandomChoice([CutMix(num_classes=CLASSES), Mixup(num_classes=CLASSES)])
    assert mixer.mixup_enabled
    mixer.mixup_enabled = False
    assert not mixer.mixup_enabled
    images, labels = batch()
    for _ in range(4):
        assert torch.equal(mixer((images, labels))[0], images)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([1.0], "2 mixers and 1 probabilities were given, expected one for each mixer"),
        ([0.0, 0.0], r"p is \[0.0, 0.0\], expected weights of at least 0 with a positive sum"),
        ([1.0, -0.5], r"p is \[1.0, -0.5\]"),
    ],
)
def test_probabilities_that_no_choice_can_follow(p: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        RandomChoice([CutMix(), MixUp()], p)
    with pytest.raises(InputError, match=r"mixers is empty, expected one mixer or more, such as \[CutMix"):
        RandomChoice([])
