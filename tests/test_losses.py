"""`tlfx.losses` against timm's, against loops over positions, and behind an aligned model."""

from __future__ import annotations

from typing import Any

import pytest
import timm.loss
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tlfx
from tlfx.errors import InputError, TargetError
from tlfx.losses import BinaryCrossEntropy, SoftTargetCrossEntropy, TokenLabelCrossEntropy
from tlfx.mix import CutMix

CLASSES = 6


def random(*shape: int, seed: int = 0, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Logits that take gradients, and soft targets, of a shape with classes along an axis."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    return logits, torch.randn(shape, generator=generator).mul(2).softmax(axis)


def assert_same_with_gradient(ours: nn.Module, theirs: nn.Module, logits: Tensor, target: Tensor) -> None:
    loss, expected = ours(logits, target), theirs(logits, target)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 10**6))
def test_cross_entropy_is_that_of_timm(batch: int, classes: int, seed: int) -> None:
    ours, theirs = SoftTargetCrossEntropy(), timm.loss.SoftTargetCrossEntropy()
    logits, target = random(batch, classes, seed=seed)
    assert_same_with_gradient(ours, theirs, logits, target)
    assert torch.equal(ours(logits, target), theirs(logits, target))


@settings(deadline=None)
@given(
    batch=st.integers(1, 5),
    threshold=st.sampled_from([None, 0.0, 0.2]),
    sum_classes=st.booleans(),
    weighted=st.booleans(),
    pos_weight=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_binary_cross_entropy_is_that_of_timm(
    batch: int, threshold: float | None, sum_classes: bool, weighted: bool, pos_weight: float | None, seed: int
) -> None:
    arguments: dict[str, Any] = {
        "target_threshold": threshold,
        "sum_classes": sum_classes,
        "weight": torch.rand(CLASSES) if weighted else None,
        "pos_weight": pos_weight,
    }
    ours, theirs = BinaryCrossEntropy(**arguments), timm.loss.BinaryCrossEntropy(**arguments)
    assert_same_with_gradient(ours, theirs, *random(batch, CLASSES, seed=seed))


@pytest.mark.parametrize("loss", [SoftTargetCrossEntropy(), BinaryCrossEntropy(), BinaryCrossEntropy(sum_classes=True)])
@pytest.mark.parametrize("dense", [False, True])
def test_positions_are_averaged(loss: nn.Module, dense: bool) -> None:
    logits, target = random(2, CLASSES, 3, 4, axis=1) if dense else random(2, 12, CLASSES)
    rows = [x.permute(0, 2, 3, 1).flatten(0, 2) if dense else x.flatten(0, 1) for x in (logits, target)]
    each = [loss(logit[None], soft[None]) for logit, soft in zip(*rows, strict=True)]
    torch.testing.assert_close(loss(logits, target), torch.stack(each).mean())


def test_cross_entropy_of_dense_outputs_is_that_of_torch() -> None:
    logits, target = random(2, CLASSES, 3, 4, axis=1)
    torch.testing.assert_close(SoftTargetCrossEntropy()(logits, target), nn.functional.cross_entropy(logits, target))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_token_labels_are_weighted_by_beta(beta: float) -> None:
    (logits, target), (tokens, token_target) = random(3, CLASSES), random(3, 7, CLASSES, seed=1)
    loss = TokenLabelCrossEntropy(beta)((logits, tokens), [target, token_target])
    log_image, log_tokens = logits.detach().log_softmax(-1), tokens.detach().log_softmax(-1)
    of_image = [-float(target[b] @ log_image[b]) for b in range(3)]
    of_tokens = [-float(token_target[b, n] @ log_tokens[b, n]) for b in range(3) for n in range(7)]
    expected = sum(of_image) / 3 + beta * sum(of_tokens) / 21
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    other = TokenLabelCrossEntropy(beta, BinaryCrossEntropy())((logits, tokens), (target, token_target))
    parts = [BinaryCrossEntropy()(*pair) for pair in ((logits, target), (tokens, token_target))]
    torch.testing.assert_close(other, parts[0] + beta * parts[1])


class TokenLabeled(nn.Module):
    """A ViT with a head for patch tokens beside that of the class token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES)
        self.token_head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vit.forward_features(x)
        return self.vit.forward_head(tokens), self.token_head(tokens[:, 1:])


def test_an_aligned_model_is_trained_by_token_labels() -> None:
    model = tlfx.align(TokenLabeled())
    mixer = CutMix(num_classes=CLASSES, mode="elem", generator=torch.Generator().manual_seed(0))
    images, target = mixer(torch.randn(4, 3, 16, 16), torch.arange(4))
    outputs, soft_targets = model(images, target)
    assert [x.shape for x in soft_targets] == [x.shape for x in outputs] == [(4, CLASSES), (4, 16, CLASSES)]
    loss = TokenLabelCrossEntropy()(outputs, soft_targets)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # tokens of the first image alone are labelled more as the first than tokens of the second alone
    share = soft_targets[1].gather(-1, target.first[:, None, None].expand(-1, 16, -1))[..., 0]
    patches = target.mask.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5)).flatten(1)
    assert float(share[patches == 1].mean()) > float(share[patches == 0].mean()) + 0.2


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            torch.tensor([1, 2, 3]),
            r"torch.int64 of shape \(3,\), expected a soft target of shape \(3, 6\); use model\(",
        ),
        (
            torch.zeros(3, 5),
            r"shape \(3, 5\) and the logits \(3, 6\), expected equal shapes; compare the mixer.s num_classes",
        ),
        (None, "the target is a NoneType, expected the soft target that model"),
    ],
)
@pytest.mark.parametrize("loss", [SoftTargetCrossEntropy(), BinaryCrossEntropy()])
def test_targets_that_do_not_fit(loss: nn.Module, target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        loss(torch.zeros(3, 6), target)
    with pytest.raises(TargetError, match=words):
        TokenLabelCrossEntropy(loss=loss)((torch.zeros(3, 6),) * 2, (target,) * 2)


@pytest.mark.parametrize(("given", "words"), [(torch.zeros(2, 6), "are a Tensor"), ((1, 2, 3), "are 3 values")])
def test_outputs_of_another_form(given: Any, words: str) -> None:
    pair = torch.zeros(2, 6), torch.zeros(2, 4, 6)
    with pytest.raises(
        InputError, match=f"outputs {words}, expected two tensors: for the class token and for the patch"
    ):
        TokenLabelCrossEntropy()(given, pair)
    with pytest.raises(InputError, match=f"targets {words}"):
        TokenLabelCrossEntropy()(pair, given)


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match=r"target_threshold is 1.0, expected a probability in \[0, 1\), often 0.2"):
        BinaryCrossEntropy(1.0)
    with pytest.raises(InputError, match=r"beta is -1.0, expected a weight of at least 0"):
        TokenLabelCrossEntropy(-1.0)


def test_targets_near_the_threshold_do_not_cross_it_in_half_precision() -> None:
    logits, target = torch.randn(2, 4).bfloat16(), torch.full((2, 4), 0.2)  # 0.2 is 0.2002 in bfloat16
    loss = BinaryCrossEntropy(target_threshold=0.2)
    assert torch.equal(loss(logits, target), loss(logits.float(), torch.zeros(2, 4)))
    soft = BinaryCrossEntropy()(logits, target)
    assert soft.dtype == torch.float32
    assert torch.equal(soft, BinaryCrossEntropy()(logits.float(), target))
