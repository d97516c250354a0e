"""Reference shares against one picture at a time, composed pixel by pixel, in float64."""

from __future__ import annotations

import math
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import hooks_of
from torch import nn
from twins.eq_13 import mixing_ratio
from twins.families import FAMILIES
from twins.recorder import outputs_of

from tlfx.analysis.classifier import Classifier
from tlfx.analysis.invariants import rectangles
from tlfx.analysis.last_tokens import LastTokens
from tlfx.analysis.reference import REFERENCES, Mixture, gradient_share, references, replacement_share
from tlfx.errors import InputError

SIDE = 16


def double_vit() -> nn.Module:
    """Two blocks on 4×4 tokens, in double precision, with a classifier that tells classes apart."""
    model = helpers.vit()
    nn.init.normal_(model.get_parameter("head.weight"))
    return model.double().eval()


def mixed_images(mask: torch.Tensor | None = None) -> Mixture:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, SIDE, SIDE, generator=draw, dtype=torch.float64)
    mask = (rectangles(6, (SIDE, SIDE), seed=2) if mask is None else mask).double()
    labels = torch.tensor([0, 1, 2, 3, 4, 2])
    return Mixture(images, mask * images + (1 - mask) * images.flip(0), mask, labels)


def composed(mask: np.ndarray, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
    """One picture, pixel by pixel, as a batch of one."""
    made = np.empty_like(first)
    for row in range(SIDE):
        for column in range(SIDE):
            share = mask[0, row, column]
            made[:, row, column] = share * first[:, row, column] + (1 - share) * second[:, row, column]
    return torch.from_numpy(made)[None]


def alone(model: Any, given: Mixture, place: int) -> dict[str, float]:
    """The references of one pair, from their definitions."""
    pictures, masks = given.images.numpy(), given.mask.numpy()
    other = len(pictures) - 1 - place
    a, b = int(given.labels[place]), int(given.labels[other])
    mask, first, second, mean = masks[place], pictures[place], pictures[other], pictures.mean(0)

    def margin(one: np.ndarray, two: np.ndarray) -> float:
        logits = model(composed(mask, one, two))[0]
        return float((logits[a] - logits[b]).detach())

    def effects(without_first: float, without_second: float) -> float:
        one, two = max(margin(first, second) - without_first, 0), max(without_second - margin(first, second), 0)
        return one / (one + two) if one + two > 0 else math.nan

    def feature(picture: torch.Tensor) -> np.ndarray:
        return model.forward_head(model.forward_features(picture), pre_logits=True)[0].detach().numpy()

    def tokens(picture: torch.Tensor) -> list[list[float]]:
        return outputs_of(model, picture, [model.blocks[-1]])[model.blocks[-1]][0].tolist()

    def cosine(one: np.ndarray, two: np.ndarray) -> float:
        return max(0.0, float(one @ two / np.linalg.norm(one) / np.linalg.norm(two)))

    mixed = composed(mask, first, second)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0], mixed)[:, 0].numpy()
    amount = np.abs((jacobian[a] + jacobian[b]) * mixed[0].numpy())
    unmixed = [torch.from_numpy(x)[None] for x in (first, second)]
    s1, s2 = (cosine(feature(mixed), feature(x)) for x in unmixed)
    return {
        "similarity": mixing_ratio(tokens(mixed)[0], *map(tokens, unmixed)),
        "same_place": s1 / (s1 + s2),
        "exchange": effects(margin(second, second), margin(first, first)),
        "occlusion": effects(margin(mean, second), margin(first, mean)),
        "gradient": float((mask * amount).sum() / amount.sum()),
    }


@pytest.mark.parametrize("mixing", ["cutmix", "mixup"])
def test_one_pair_at_a_time(mixing: str) -> None:
    given = mixed_images(torch.full((6, 1, SIDE, SIDE), 0.3) if mixing == "mixup" else None)
    model = double_vit()
    shares = references(Classifier(model, given.images), LastTokens(model, given.images), given)
    assert list(shares) == list(REFERENCES)
    with torch.no_grad():
        for p in model.parameters():
            assert p.grad is None
    for place in range(6):
        expected = alone(model, given, place)
        assert {k: float(v[place]) for k, v in shares.items()} == pytest.approx(expected, abs=1e-5, nan_ok=True)
    values = torch.stack(list(shares.values()))
    assert bool(((values >= 0) & (values <= 1) | values.isnan()).all())
    assert not bool(values[:2].isnan().all(1).any())


def test_a_model_that_averages_its_tokens() -> None:
    """λ is the mean over the tokens that the classifier reads, those of the last grid."""
    model, mask = FAMILIES["mixer"].model().eval(), rectangles(6, (32, 32), seed=2)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mixed = mask * images + (1 - mask) * images.flip(0)
    given = Mixture(images, mixed, mask, torch.tensor([0, 1, 2, 3, 4, 2]))
    shares_of_images = references(Classifier(model, images), LastTokens(model, images), given)
    last = [outputs_of(model, x, [model.blocks[-1]])[model.blocks[-1]].tolist() for x in (mixed, images)]
    for place, tokens in enumerate(last[0]):
        shares = [mixing_ratio(token, last[1][place], last[1][5 - place]) for token in tokens]
        assert float(shares_of_images["similarity"][place]) == pytest.approx(sum(shares) / len(shares), abs=1e-5)


def test_pairs_that_count() -> None:
    mask = torch.full((6, 1, SIDE, SIDE), 0.5)
    mask[0], mask[1] = 1, 0
    given = mixed_images(mask)
    assert given.labels.flip(0).tolist() == [2, 4, 3, 2, 1, 0]
    assert given.counts.tolist() == [False, False, True, True, True, True]
    same = Mixture(given.images, given.mixed, mask, torch.tensor([0, 1, 2, 2, 4, 2]))
    assert same.counts.tolist() == [False, False, False, False, True, True]


def test_swapping_the_images_swaps_the_share() -> None:
    margin, one, other = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    share = replacement_share(margin, one, other)
    torch.testing.assert_close(replacement_share(-margin, -other, -one), 1 - share, equal_nan=True)
    assert torch.equal(share.isnan(), (margin <= one) & (other <= margin))


def test_no_gradient_is_no_share() -> None:
    assert gradient_share(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2)).isnan().all()


class Odd(nn.Module):
    """A model of which parts are not what they seem."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 2)
        self.table = nn.Linear(2, 2)
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.table(torch.ones(1, 2)).mean()
        return self.head(input=x.mean((2, 3))) * scale


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        (
            Odd(),
            "heads",
            "classifier='heads' is not a module of the model; its last modules are 'unused', 'table', 'head'",
        ),
        (
            Odd(),
            "unused",
            r"classifier='unused' does not run for 4 images, expected features \(batch, …\): pass the path",
        ),
        (Odd(), "table", r"classifier='table' reads a tensor of shape \(1, 2\) for 4 images"),
        (nn.Flatten(), None, "no module with a weight matrix ran.*pass its path, such as classifier='head'"),
        (
            nn.Conv2d(3, 4, 1),
            None,
            r"the model returns shape \(4, 4, 2, 2\) for 4 images, expected logits \(batch, classes",
        ),
    ],
)
def test_errors_of_the_classifier(model: nn.Module, path: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Classifier(model, torch.rand(4, 3, 2, 2), path)


def test_a_classifier_called_by_keyword() -> None:
    model, images = Odd(), torch.rand(4, 3, 2, 2)
    classifier = Classifier(model, images)
    logits, feature = classifier(images)
    assert (classifier.path, classifier.classes) == ("head", 4)
    assert torch.equal(feature, images.mean((2, 3)))
    assert torch.equal(logits, model(images))
    assert not hooks_of(model)
