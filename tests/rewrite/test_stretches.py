"""Stretches of label arithmetic: the same labels, in a graph that leaves autograd and autocast once."""

from __future__ import annotations

import functools
from typing import Any

import helpers
import torch
from rule_harness import calls, random_mask
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from tlfx import runtime
from tlfx.propagate import Options
from tlfx.rewrite.stretches import with_stretches
from tlfx.runtime.arithmetic import label_arithmetic, original_of
from tlfx.trace import trace

IMAGES, MASK = torch.randn(2, 3, 32, 32), random_mask((3, 32, 32), seed=1)[:2]


def stretches(module: GraphModule) -> list[Graph]:
    """The graphs of the stretches of a graph module."""
    parts = [part for name, part in module.named_children() if name.startswith("stretch")]
    return [part.body.graph for part in parts if isinstance(part.body, GraphModule)]


def test_labels_of_a_convolutional_network_are_one_stretch() -> None:
    aligned = trace(helpers.convnext().eval(), IMAGES).rewrite()
    program = with_stretches(aligned)
    (graph,) = stretches(program)
    assert calls(aligned, runtime.convolve)
    assert not any(getattr(n.target, "__module__", "") == "tlfx.runtime" for n in program.graph.nodes)
    assert not any(original_of(n.target) for n in graph.nodes)
    for ours, theirs in zip(program(IMAGES, MASK), aligned(IMAGES, MASK), strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_modes_are_those_of_label_arithmetic() -> None:
    """Labels have no gradient and are float32, and the model has gradients and the type of autocast."""
    program = with_stretches(trace(helpers.convnext(), IMAGES).rewrite())
    with torch.autocast("cpu", torch.bfloat16):
        (output,), (label,) = program(IMAGES, MASK)
    assert (output.dtype, output.requires_grad) == (torch.bfloat16, True)
    assert (label.dtype, label.requires_grad) == (torch.float32, False)


def test_parameters_are_read_at_each_call() -> None:
    model: Any = helpers.convnext().eval()
    program = with_stretches(trace(model, IMAGES).rewrite())
    before = program(IMAGES, MASK)[1][0]
    kernel = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    kernel.weight = nn.Parameter(torch.zeros_like(kernel.weight))
    kernel.weight.data[:, :, 0, 0] = 1.0
    after = program(IMAGES, MASK)[1][0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, trace(model, IMAGES).rewrite()(IMAGES, MASK)[1][0])


def test_few_labels_are_no_stretch() -> None:
    """An operator of the model between labels ends a stretch; one or two functions are not faster as a stretch."""
    images, mask = IMAGES[..., :16, :16], MASK[..., :16, :16]
    aligned = trace(helpers.vit(depth=2).eval(), images, Options(attention="fused")).rewrite()
    program = with_stretches(aligned)
    assert len(stretches(program)) == 1  # from the mask to the attention of the first layer
    assert len(calls(program, runtime.attention)) == 1
    for ours, theirs in zip(program(images, mask), aligned(images, mask), strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_a_graph_without_stretches_stays_as_it_is() -> None:
    aligned = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), IMAGES).rewrite()
    assert with_stretches(aligned) is aligned


def test_a_function_around_label_arithmetic_is_not_left_out() -> None:
    """functools.wraps copies the attributes of what it wraps."""

    @label_arithmetic
    def labels(given: Tensor) -> Tensor:
        return given

    @functools.wraps(labels)
    def doubled(given: Tensor) -> Tensor:
        return 2 * labels(given)

    graph = Graph()
    label = graph.placeholder("given")
    for function in (labels, doubled, labels, labels, labels):
        label = graph.call_function(function, (label,))
    graph.output(label)
    module = GraphModule(nn.Module(), graph)
    program = with_stretches(module)
    assert len(stretches(program)) == 1
    assert program(torch.ones(1)) == module(torch.ones(1)) == 2
