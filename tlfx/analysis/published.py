"""The formulation of the published code, as a baseline for timing.

It has labels with one column per class, and attention with explicit weights that the labels reuse.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlfx import runtime
from tlfx.aligned import align, planner_of
from tlfx.capture.arguments import Call
from tlfx.errors import InputError
from tlfx.mix.target import MixedTarget

__all__ = ["explicit_attention", "published"]


def published(model: nn.Module, images: Tensor, target: MixedTarget) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that computes the output of a model and its soft target (batch, classes) by the published formulation.

    Before the first attention, the share of the first image is converted to labels of all classes; from there on, each
    label is (batch, tokens, classes). Fused attention is replaced by explicit weights, so that outputs differ from the
    model's by rounding. The model is aligned in place. Raises InputError if it has no attention.

    >>> import timm
    >>> x, mask = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32)
    >>> target = MixedTarget(first=torch.tensor([0, 1]), second=torch.tensor([2, 3]), mask=mask, num_classes=10)
    >>> model = timm.create_model("test_vit", img_size=32, depth=2, num_classes=10)
    >>> output, soft = published(model, x, target)()
    >>> soft.shape, round(float(soft.sum()), 3)
    (torch.Size([2, 10]), 2.0)
    """
    # during the capture only: the graph then computes the weights itself
    with patch.object(F, "scaled_dot_product_attention", explicit_attention):
        plan = planner_of(align(model)).plan(model, Call.of(images))
    graph_module = copy.copy(plan.graph_module)
    graph_module.graph = copy.deepcopy(graph_module.graph)
    spread = [n for n in graph_module.graph.nodes if n.target is runtime.spread]
    if not any(n.target is runtime.mix for n in graph_module.graph.nodes) or not spread:
        raise InputError(
            f"{type(model).__name__} has no attention, which the published formulation needs: omit it for this model"
        )

    def classes(labels: Tensor, images: Tensor) -> Tensor:
        """Soft labels over all classes, (batch, positions, classes)."""
        return target.soften(runtime.spread(labels, images)[..., 0])

    for node in spread:
        node.target = classes
    graph_module.recompile()

    def forward() -> tuple[Tensor, Tensor]:
        """The output, and its soft target (batch, classes)."""
        outputs, labels = graph_module(images, target.mask)
        return outputs[0], labels[0]

    return forward


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` with explicit weights (batch, heads, n, m)."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    weight = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weight.shape[-2:], dtype=torch.bool, device=weight.device).tril()
    if attn_mask is not None:
        weight = weight.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else weight + attn_mask
    return F.dropout(weight.softmax(-1), dropout_p) @ value
