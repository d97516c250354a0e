"""Residual connections that are part of spatial mixing: the same labels by fewer calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from residual_blocks import Residual, attention, residuals
from rule_harness import calls, random_mask
from torch import nn
from torch.fx import GraphModule

from tlfx import runtime
from tlfx.propagate import Options
from tlfx.rewrite.residuals import MIXING
from tlfx.runtime.arithmetic import original_of
from tlfx.trace import trace

IMAGES, MASK = torch.randn(2, 3, 16, 16), random_mask((3, 16, 16), seed=1)[:2]


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "fused attention": lambda depth: attention(depth, fused=True),
    "written attention": lambda depth: attention(depth, fused=False),
    "convolution": residuals(lambda: nn.Conv2d(3, 3, 3, padding=1)),
}


def rewritten(model: nn.Module) -> GraphModule:
    return trace(model.eval(), IMAGES, Options(attention="fused")).rewrite()


def separate(module: GraphModule) -> int:
    """Write the residual connections of a graph as calls again; the number of them."""
    mixing = [n for n in module.graph.nodes if n.target in MIXING and "residual" in n.kwargs]
    for node in mixing:
        kwargs = dict(node.kwargs)
        residual = kwargs.pop("residual")
        node.kwargs = kwargs
        with module.graph.inserting_after(node):
            average = module.graph.call_function(runtime.average)
        node.replace_all_uses_with(average)
        average.args = (residual, node)
    module.recompile()
    return len(mixing)


@pytest.mark.parametrize("kind", MODELS)
def test_labels_are_the_same_by_fewer_calls(kind: str) -> None:
    aligned = rewritten(MODELS[kind](3))
    assert calls(aligned, runtime.average) == []
    label = aligned(IMAGES, MASK)[1]
    assert separate(aligned) == 3
    torch.testing.assert_close(aligned(IMAGES, MASK)[1], label)


@pytest.mark.parametrize(("kind", "added"), [("fused attention", 1), ("written attention", 1), ("convolution", 2)])
def test_a_block_adds_as_many_kernels_on_a_gpu(kind: str, added: int) -> None:
    """Attention, its heads and the residual connection; or the sums of |K|, and a convolution with the connection."""
    counts = [
        sum(original_of(node.target) is not None for node in rewritten(MODELS[kind](depth)).graph.nodes)
        for depth in (2, 4)
    ]
    assert counts[1] - counts[0] == 2 * added


def test_labels_that_are_read_elsewhere_stay() -> None:
    aligned = rewritten(Residual(nn.Conv2d(3, 3, 3, padding=1), both=True))
    assert len(calls(aligned, runtime.average)) == 1
    assert "residual" not in calls(aligned, runtime.convolve)[0].kwargs
