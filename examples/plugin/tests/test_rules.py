"""The rules, compared with the operator and the module, and with their definitions written as loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tlfx_neighbourhood import Smoothing, attention, classifier
from torch import Tensor

import tlfx
from tlfx.testing import Content, LabelProbe, check_rule

LAYOUT = "bcttc"  # batch, heads, height, width, dim
HEIGHT, WIDTH, SIZE = 4, 5, 3


def made() -> list[Tensor]:
    return [torch.randn(2, 2, HEIGHT, WIDTH, 3) for _ in range(3)]


def test_attention_depends_on_what_its_label_counts() -> None:
    def same(x: Tensor) -> Tensor:
        mixed: Tensor = attention(x, x, x, SIZE)
        return mixed

    check_rule(same, lambda: Content(made()[0], LAYOUT))


def test_smoothing_depends_on_what_its_label_counts() -> None:
    check_rule(Smoothing(3), lambda: torch.randn(2, 6, 3))


def test_gradients_of_attention() -> None:
    inputs = [x.double().requires_grad_() for x in made()]
    torch.autograd.gradcheck(lambda *x: attention(*x, SIZE), inputs)
    torch.library.opcheck(attention, (*made(), SIZE))


def test_labels_of_attention_equal_a_loop() -> None:
    """Images whose pixels are the tokens: their mask is the input label; the output label is read at every token."""
    query, key, _ = (torch.randn(2, 4, HEIGHT, WIDTH) for _ in range(3))

    def run(images: Tensor, **given: Any) -> Tensor:
        q, k, v = (x.unflatten(1, (2, 2)).permute(0, 1, 3, 4, 2) for x in (given["query"], given["key"], images))
        mixed: Tensor = attention(q, k, v, SIZE)
        return mixed

    probe = LabelProbe(run, torch.randn(2, 4, HEIGHT, WIDTH), {"query": query, "key": key})
    mask = torch.rand(2, 1, HEIGHT, WIDTH)
    label = probe.labels(mask)[0][:, 0, :, :, 0, 0]
    for sample in range(2):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                expected = attention_label(query[sample], key[sample], mask[sample, 0], y, x)
                assert label[sample, y, x] == pytest.approx(expected, abs=1e-6)


def attention_label(query: Tensor, key: Tensor, label: Tensor, y: int, x: int) -> float:
    """The label of one query: the mean over two heads of a softmax over its neighbours."""
    near = [(j, i) for j in range(y - 1, y + 2) for i in range(x - 1, x + 2) if 0 <= j < HEIGHT and 0 <= i < WIDTH]
    total = 0.0
    for head in range(2):
        channels = [2 * head, 2 * head + 1]
        scores = [sum(float(query[c, y, x] * key[c, j, i]) for c in channels) / math.sqrt(2) for j, i in near]
        masses = [math.exp(s) for s in scores]
        total += sum(m * float(label[place]) for m, place in zip(masses, near, strict=True)) / sum(masses)
    return total / 2


def test_labels_of_smoothing_equal_a_loop() -> None:
    module = Smoothing(3)
    probe = LabelProbe(lambda images, module: module(images.flatten(2).mT), torch.randn(2, 3, 2, 3), {"module": module})
    mask = torch.rand(2, 1, 2, 3)
    aligned = probe.labels(mask)[0][:, :, 0, 0]
    decay = [float(torch.sigmoid(r)) for r in module.rate.detach()]
    for sample in range(2):
        label = mask[sample].flatten().tolist()
        for i in range(6):
            weights = [sum(f ** abs(i - j) for f in decay) / 3 for j in range(6)]
            expected = sum(w * share for w, share in zip(weights, label, strict=True)) / sum(weights)
            assert float(aligned[sample, i]) == pytest.approx(expected, abs=1e-6)


def test_smoothing_is_what_it_says() -> None:
    module, x = Smoothing(3), torch.randn(1, 6, 3)
    decay = module.rate.sigmoid()
    rows = [torch.stack([decay ** abs(i - j) * x[:, j] for j in range(6)]).sum(0) for i in range(6)]
    torch.testing.assert_close(module(x), torch.stack(rows, 1))


def test_a_model_of_both_is_aligned() -> None:
    model = tlfx.align(classifier(depth=1))
    mask = torch.ones(2, 1, 32, 32)
    mask[..., :8] = 0
    target = tlfx.MixedTarget(first=torch.tensor([0, 1]), second=torch.tensor([2, 3]), mask=mask, num_classes=10)
    logits, soft_target = model(torch.randn(2, 3, 32, 32), target)
    assert logits.shape == soft_target.shape == (2, 10)
    torch.testing.assert_close(soft_target.sum(1), torch.ones(2))
    assert not torch.allclose(soft_target, target.area())
