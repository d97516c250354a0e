"""`tlfx.assign`: the targets of the three methods, against slow twins."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import helpers
import pytest
import torch
from batches import CLASSES, batch, seeded
from helpers import slow_except
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tlfx
from tlfx.assign import METHODS, TargetAssigner
from tlfx.errors import InputError, TargetError
from tlfx.mix import CutMix, MixedTarget

PATCH = 4


def vit(pool: str = "token") -> VisionTransformer:
    model = helpers.vit(0.5, depth=2, num_classes=CLASSES, global_pool=pool, class_token=pool == "token")
    return model.eval()


def mixed(patches: bool = False) -> tuple[Tensor, MixedTarget]:
    images, labels = batch(5, 16, 16)
    images, target = CutMix(num_classes=CLASSES, label_smoothing=0.1, mode="elem", generator=seeded(3))(images, labels)
    if patches:  # boxes of whole patches
        whole = torch.nn.functional.interpolate(target.mask[:, :, ::PATCH, ::PATCH], scale_factor=PATCH)
        target = MixedTarget(target, mask=whole)
    return images, target


def last_attention(model: VisionTransformer, images: Tensor) -> Tensor:
    """Weights of the last block averaged over heads, (batch, queries, keys), computed from its own parameters."""
    inputs_of_attention: list[Tensor] = []
    attention = model.blocks[-1].attn
    hook = attention.register_forward_pre_hook(lambda _, inputs: inputs_of_attention.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    tokens = inputs_of_attention[0]
    query, key, _ = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (query @ key.transpose(-2, -1) * attention.scale).softmax(-1).mean(1).detach()


def patch_labels(target: MixedTarget) -> Tensor:
    return target.mask.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).mean((1, 4, 5)).flatten(1)


def lam(target: MixedTarget, share: Tensor) -> Tensor:
    """Soft target of a share λ, as TransMix writes it."""
    first, second = (tlfx.mix.labels.hard_or_soft(y, CLASSES, 0.1) for y in (target.first, target.second))
    return share[:, None] * first + (1 - share[:, None]) * second


def run(method: Any, model: nn.Module, images: Tensor, target: Any) -> tuple[Any, Any]:
    assign = TargetAssigner(method)
    with torch.no_grad():
        return assign(assign.prepare(model), images, target)


def test_plain_is_the_area() -> None:
    images, target = mixed()
    model = vit()
    logits, soft = run("plain", model, images, target)
    assert not isinstance(model, tlfx.Aligned)
    assert torch.equal(logits, model(images))
    assert torch.equal(soft, target.area())


@pytest.mark.slow
def test_aligned_is_the_alignment() -> None:
    images, target = mixed()
    logits, soft = run("aligned", vit(), images, target)
    expected = tlfx.align(vit())(images, target)
    assert torch.equal(logits, expected[0])
    assert torch.equal(soft, expected[1])


def test_transmix_averages_the_area_with_the_class_attention() -> None:
    model = vit()
    for images, target in (mixed(), mixed(patches=True)):
        logits, soft = run("transmix", deepcopy(model), images, target)
        weights, area = last_attention(model, images)[:, 0], target.mask.mean((1, 2, 3))
        attended = weights[:, 0] * area + (weights[:, 1:] * patch_labels(target)).sum(1)
        torch.testing.assert_close(soft, lam(target, (area + attended) / 2), atol=1e-6, rtol=0)
        assert torch.equal(logits, model(images))


def test_transmix_is_the_published_one_but_for_the_class_token_itself() -> None:
    """Published: (λ₀ + λ₁)/2, λ₁ = ΣA·M / ΣA over patches (arXiv 2111.09833 and the authors' code)."""
    model = vit()
    images, target = mixed(patches=True)
    weights, area = last_attention(model, images)[:, 0], target.mask.mean((1, 2, 3))
    by_patches = (weights[:, 1:] * patch_labels(target)).sum(1) / weights[:, 1:].sum(1)
    published = (area + by_patches) / 2
    soft = run("transmix", model, images, target)[1]
    gap = (area - by_patches) * weights[:, 0] / 2  # what the class token keeps for itself
    torch.testing.assert_close(soft, lam(target, published + gap), atol=1e-6, rtol=0)
    assert not torch.allclose(soft, lam(target, area), atol=1e-2)


@pytest.mark.slow
def test_transmix_without_a_class_token_averages_over_tokens() -> None:
    model = vit("avg")
    images, target = mixed()
    weights, labels = last_attention(model, images), patch_labels(target)
    share = (labels + (weights @ labels[..., None])[..., 0]).mean(1) / 2
    torch.testing.assert_close(run("transmix", model, images, target)[1], lam(target, share), atol=1e-6, rtol=0)


def cait() -> nn.Module:
    return Cait(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_classes=CLASSES
    )


def pooled() -> nn.Module:
    return vit("map")


@pytest.mark.parametrize(
    ("build", "last"),
    [(pooled, 2), pytest.param(cait, 3, marks=pytest.mark.slow), pytest.param(swin, 2, marks=pytest.mark.slow)],
)
def test_the_last_attention_is_found(build: Callable[[], nn.Module], last: int) -> None:
    """As the number that counts from the first; attention that pools tokens is one too."""
    torch.manual_seed(0)
    model = build().eval()
    images, target = mixed()
    soft = run("transmix", deepcopy(model), images, target)[1]
    with torch.no_grad():
        expected = tlfx.align(model, layers=[last])(images, target)[1]
    assert torch.equal(soft, expected)
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    assert not torch.allclose(soft, target.area(), atol=1e-4)


def test_more_attentions_than_there_are() -> None:
    with pytest.raises(InputError, match=r"layers contains -9, but this model has 2 .*: expected numbers from -2 to 1"):
        tlfx.align(vit(), layers=[-9, 0], example=mixed()[0])


def test_a_model_without_attention_has_no_transmix() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="layers contains -1, but this model has 0 token-mixing attention layers"):
        run("transmix", model, *mixed())


@pytest.mark.parametrize("method", slow_except(("plain", "aligned"), METHODS))
def test_unmixed_labels_come_back_soft(method: Any) -> None:
    images, labels = batch(5, 16, 16)
    soft = torch.nn.functional.one_hot(labels, CLASSES).float()
    assign = TargetAssigner(method)
    model = assign.prepare(vit())
    with torch.no_grad():
        for target in (labels, soft):
            assert torch.equal(assign(model, images, target)[1], soft)


def test_blending_with_the_area() -> None:
    """A number, a schedule that is asked for each batch, and the cosine similarity of both targets."""
    images, target = mixed()
    model, area = tlfx.align(vit()), target.area()
    with torch.no_grad():
        aligned = TargetAssigner()(model, images, target)[1]
        quarter = TargetAssigner(blend=0.25)(model, images, target)[1]
        shares = iter((0.0, 1.0))
        schedule = TargetAssigner(blend=lambda: next(shares))
        first, second = (schedule(model, images, target)[1] for _ in range(2))
        agreed = TargetAssigner(blend="agreement")(model, images, target)[1]
    torch.testing.assert_close(quarter, 0.25 * aligned + 0.75 * area)
    assert torch.equal(first, area)
    assert torch.equal(second, aligned)
    for row, one, other in zip(agreed, aligned, area, strict=True):
        share = one @ other / (one.norm() * other.norm())
        torch.testing.assert_close(row, share * one + (1 - share) * other)
    assert not torch.allclose(agreed, aligned, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (5, 16, CLASSES), (5, CLASSES, 4, 4)])
@pytest.mark.parametrize("blend", [0.5, "agreement"])
def test_blending_of_targets_of_positions(shape: tuple[int, ...], blend: Any) -> None:
    """Each position is blended with the target of its image: a logit for each image, tokens, and dense outputs."""
    classes = 1 if len(shape) == 1 else CLASSES
    mask, labels = torch.rand(5, 1, 4, 4).round(), torch.rand(5, classes)
    target = MixedTarget(first=labels, second=labels.flip(0), mask=mask, num_classes=classes)
    soft = torch.rand(shape)

    class Given(nn.Module):
        def forward(self, x: Tensor, target: Any) -> tuple[Tensor, Any]:
            return x, {"dense": soft, "none": None}

    blended = TargetAssigner(blend=blend)(Given(), torch.rand(5, 3, 4, 4), target)[1]
    assert blended["none"] is None
    axis = {1: None, 3: 2, 4: 1}[len(shape)]
    given, mixed_labels = (x.unsqueeze(-1) if axis is None else x.movedim(axis, -1) for x in (soft, blended["dense"]))
    for one, other in zip(*(x.reshape(5, -1, classes).unbind(1) for x in (given, mixed_labels)), strict=True):
        share = nn.functional.cosine_similarity(one, target.area())[:, None] if blend == "agreement" else blend
        torch.testing.assert_close(other, share * one + (1 - share) * target.area())


def test_what_cannot_be_blended() -> None:
    words = "expected a share from 0 to 1, a function that returns one, or 'agreement'"
    bad: Any
    for bad in (1.5, -0.1, "half", None):
        with pytest.raises(InputError, match=rf"blend is {bad!r}, {words}"):
            TargetAssigner(blend=bad)
    images, target = mixed()
    model = nn.Sequential(nn.Conv2d(3, CLASSES, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=rf"blend is 2, {words}"):
        TargetAssigner(blend=lambda: 2)(tlfx.align(model), images, target)

    class Twice(nn.Module):
        def forward(self, x: Tensor, target: Any) -> tuple[Tensor, Tensor]:
            return x, target.area().repeat(2, 1)

    with pytest.raises(TargetError, match=rf"{re.escape(f'(10, {CLASSES})')}, cannot be blended .*: expected 5 rows"):
        TargetAssigner(blend=0.5)(Twice(), images, target)


class Both(nn.Module):
    """Logits of the class token and of each patch, and the number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit()

    def forward(self, x: Tensor) -> dict[str, Any]:
        tokens = self.vit.head(self.vit.forward_features(x))
        return {"cls": tokens[:, 0], "tokens": tokens[:, 1:], "count": torch.tensor(tokens.shape[1])}


@pytest.mark.slow
def test_several_outputs_have_targets_in_their_structure() -> None:
    images, target = mixed()
    shapes = {}
    for method in METHODS:
        output, soft = run(method, Both(), images, target)
        assert list(soft) == list(output)
        assert soft["count"] is None
        shapes[method] = [tuple(soft[name].shape) for name in ("cls", "tokens")]
    assert shapes["plain"] == [(5, CLASSES), (5, CLASSES)]
    assert shapes["aligned"] == shapes["transmix"] == [(5, CLASSES), (5, 16, CLASSES)]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.zeros(3, dtype=torch.long), "the target is 3 labels, expected a tlfx.MixedTarget or labels of 5 images"),
        (None, "the target is a NoneType"),
        (torch.full((5,), 9), "labels from 9 to 9, expected 0 to 6"),
    ],
)
def test_targets_that_do_not_fit(target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        run("plain", vit(), mixed()[0], target)
    with pytest.raises(TargetError, match="5 labels was given with 4 images"):
        run("plain", vit(), mixed()[0][:4], mixed()[1])


def test_an_unknown_method() -> None:
    with pytest.raises(InputError, match="method is 'cutmix', expected one of 'plain', 'transmix', 'aligned'"):
        TargetAssigner("cutmix")  # type: ignore[arg-type]
