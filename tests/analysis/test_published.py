"""The published formulation gives the same targets, with a column for each class."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import tlfx
from tlfx import InputError
from tlfx.analysis.published import explicit_attention, published


def test_targets_and_outputs_are_those_of_alignment() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, patch_size=8, depth=2, num_classes=6)
    images, mask = torch.rand(3, 3, 32, 32), torch.rand(3, 1, 32, 32)
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    target = tlfx.MixedTarget(first=first, second=second, mask=mask, num_classes=6, smoothing=0.1)
    output, soft = published(deepcopy(model), images, target)()
    expected, label = tlfx.align(model)(images, target)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(soft, label, rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_explicit_attention(causal: bool, grouped: bool) -> None:
    query = torch.randn(2, 4, 5, 8)
    key, value = torch.randn(2, 2, 2 if grouped else 4, 6 if not causal else 5, 8).unbind()
    masks = [None] if causal else [None, torch.randn(5, 6), torch.rand(5, 6) > 0.2]
    for mask in masks:
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": causal, "scale": 0.3, "enable_gqa": grouped}
        expected = F.scaled_dot_product_attention(query, key, value, **options)
        torch.testing.assert_close(explicit_attention(query, key, value, **options), expected, equal_nan=True)


def test_a_model_without_attention_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    target = tlfx.MixedTarget(
        first=torch.tensor([0]), second=torch.tensor([1]), mask=torch.rand(1, 1, 8, 8), num_classes=4
    )
    with pytest.raises(InputError, match="has no attention, which the published formulation needs: omit it"):
        published(model, torch.rand(1, 3, 8, 8), target)
