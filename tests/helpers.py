"""What many tests share: a small transformer, a batch, and a step of training of two models compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXtBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils._pytree import tree_leaves, tree_map

import tlfx
from tlfx.aligned import planner_of
from tlfx.analysis.invariants import rectangles
from tlfx.analysis.invariants import target as target_of
from tlfx.mix import ShareTarget
from tlfx.report import Report

ReportOf = Callable[..., Report]
"""The fixture `report_of`."""
EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES = 5
SIDE = 16
LABEL: dict[str, Any] = {"rtol": 0.0, "atol": 1e-6}
"""Tolerance of labels, which are sums in another order than those they are compared with."""


def slow_except(every_run: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases of a parametrized test, those outside of `every_run` marked as slow; a tuple holds several arguments."""
    rest = pytest.mark.slow
    return [
        case if case in every_run else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=rest)
        for case in cases
    ]


def vit(qkv_std: float | None = None, **options: Any) -> VisionTransformer:
    """Two blocks on 4 × 4 patches of 4 × 4 pixels, the same weights at every call.

    Attention with fresh weights is nearly uniform. `qkv_std` is the standard deviation of new weights of queries, keys
    and values: large ones make attention choose.
    """
    torch.manual_seed(0)
    settings = {"img_size": SIDE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    model = VisionTransformer(**(settings | options))
    for name, parameter in model.named_parameters():
        if qkv_std is not None and name.endswith("qkv.weight"):
            nn.init.normal_(parameter, std=qkv_std)
    return model


def convnext() -> nn.Module:
    """A block that works with its channels last."""
    torch.manual_seed(0)
    block = ConvNeXtBlock(8, ls_init_value=1.0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def pictures(batch: int = 3, side: int = SIDE, seed: int = 1) -> Tensor:
    """Random images (batch, 3, side, side)."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def mixture(batch: int = 3, side: int = SIDE, **changes: Any) -> ShareTarget:
    """Rectangles of class 1 in images of class 0, of two classes; other items by name."""
    return ShareTarget(target_of(rectangles(batch, (side, side), seed=0)) | changes)


def pair(model: nn.Module) -> tuple[Any, Any]:
    """A plain copy of a model, and the model itself, aligned."""
    return deepcopy(model), tlfx.align(model)


def plans(model: nn.Module) -> int:
    """How many aligned graphs an aligned model holds."""
    return len(planner_of(model).plans)


def captures(model: nn.Module) -> int:
    """How many captures an aligned model holds."""
    return len(planner_of(model).captures)


def aligned_graph(model: nn.Module, example: Any) -> Graph:
    """The graph by which an aligned model computes a call with an example."""
    return planner_of(model).plan_example(model, example).graph_module.graph


def total(output: Any) -> Tensor:
    """A loss that every output with a gradient has a part in."""
    return torch.stack([x.float().square().mean() for x in tree_leaves(output) if isinstance(x, Tensor)]).sum()


def gradients(model: nn.Module) -> list[Tensor | None]:
    """Of all parameters, in their order."""
    return [p.grad for p in model.parameters()]


def hooks_of(model: nn.Module) -> list[Any]:
    """All hooks around the forward of its modules."""
    return [hook for m in model.modules() for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]


def seeded(model: nn.Module, *args: Any, seed: int = 7, **kwargs: Any) -> Any:
    """What a model returns from a given random state."""
    torch.manual_seed(seed)
    return model(*args, **kwargs)


def assert_same(actual: Any, expected: Any) -> None:
    """Equal tensors in equal structures, bit for bit."""
    assert tree_map(type, actual) == tree_map(type, expected)
    for one, other in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        else:
            assert one == other


def assert_target(soft: Any) -> None:
    """Detached float32 soft targets whose rows sum to 1."""
    for leaf in tree_leaves(soft):
        if leaf is not None:
            assert leaf.dtype == torch.float32
            assert not leaf.requires_grad
            axis = leaf.dim() - 1 if leaf.dim() < 4 else 1
            torch.testing.assert_close(leaf.sum(axis), torch.ones_like(leaf.sum(axis)), **LABEL)


def assert_same_step(
    plain: nn.Module, aligned: nn.Module, images: Tensor, target: tlfx.MixedTarget | None = None, seed: int = 7
) -> Any:
    """A training step of both from one random state: outputs, gradients and buffers are equal, bit for bit.

    Returns the soft target of the aligned model.
    """
    expected = seeded(plain, images, seed=seed)
    target = mixture(len(images), images.shape[-1]) if target is None else target
    output, soft = seeded(aligned, images, target, seed=seed)
    total(expected).backward()
    total(output).backward()
    assert_same(output, expected)
    assert_same(gradients(aligned), gradients(plain))
    assert_same(list(aligned.buffers()), list(plain.buffers()))
    assert_target(soft)
    return soft
