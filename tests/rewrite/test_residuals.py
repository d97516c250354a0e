"""Residual connections that are part of spatial mixing: the same labels by fewer calls."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from rule_harness import calls, random_mask

from tlfx import runtime
from tlfx.propagate import Options
from tlfx.rewrite.residuals import fuse_residuals
from tlfx.trace import trace


@pytest.mark.parametrize("fused", [True, False])
def test_labels_are_the_same_by_fewer_calls(fused: bool) -> None:
    model: Any = helpers.vit(depth=3)
    for block in model.blocks:
        block.attn.fused_attn = fused
    images, mask = torch.randn(2, 3, 16, 16), random_mask((3, 16, 16), seed=1)[:2]
    aligned = trace(model.eval(), images, Options(attention="fused")).rewrite()
    expected = aligned(images, mask)[1]
    assert len(calls(aligned, runtime.average)) == 3
    fuse_residuals(aligned.graph, {})
    aligned.recompile()
    assert calls(aligned, runtime.average) == []
    torch.testing.assert_close(aligned(images, mask)[1], expected)


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_adds_one_call(fused: bool) -> None:
    """Of one kernel on a GPU: attention, its heads and the residual connection."""
    counts: list[int] = []
    for depth in (2, 4):
        model: Any = helpers.vit(depth=depth)
        for block in model.blocks:
            block.attn.fused_attn = fused
        graph = trace(model.eval(), torch.randn(2, 3, 16, 16), Options(attention="fused")).rewrite().graph
        fuse_residuals(graph, {})
        counts.append(sum(getattr(node.target, "__module__", "").startswith("tlfx.runtime") for node in graph.nodes))
    assert counts[1] - counts[0] == 2


def test_labels_that_are_read_elsewhere_stay() -> None:
    model: Any = helpers.vit(depth=1)
    aligned = trace(model.eval(), torch.randn(2, 3, 16, 16), Options(attention="fused")).rewrite()
    (mixed,), (average,) = calls(aligned, runtime.attention), calls(aligned, runtime.average)
    outputs: Any = aligned.graph.output_node().args[0]
    aligned.graph.output_node().args = ((*outputs, mixed),)
    fuse_residuals(aligned.graph, {})
    assert average in aligned.graph.nodes
