"""Regions that meet in one call: hooks, rules, sizes among arguments, and calls that fail."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from helpers import mixture, pictures, vit
from torch import Tensor, nn
from torch.autograd import Function
from torch.fx import Graph

from tlfx import CaptureError, align, use_rules
from tlfx.analysis.invariants import share, target
from tlfx.capture.regions import Checkpoint, RegionTree

IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
PIXELS = MASK.flatten(1)


class Net(nn.Module):
    """One token a pixel, and a function of them."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 1)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Any:
        return self.function(self, self.stem(images).flatten(2).transpose(1, 2))


class Scores(nn.Module):
    """Token mixing whose rule says otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def test_hooks_of_a_module_with_a_rule_run_outside_of_its_call() -> None:
    """A hook before the call turns tokens, one after it takes every other; one that looks on fires."""
    net = Net(lambda s, x: s.part(x), part=Scores())
    part: Any = net.part
    seen: list[tuple[int, ...]] = []
    part.register_forward_pre_hook(lambda module, args: (args[0].flip(1),))
    part.register_forward_hook(lambda module, args, output: output[:, ::2])
    part.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    with use_rules({Scores: lambda op, module, x: op.pointwise(x)}):
        aligned = align(net)
        torch.testing.assert_close(share(aligned, IMAGES, MASK), PIXELS.flip(1)[:, ::2], rtol=0, atol=1e-6)
        del seen[:]
        aligned(IMAGES, target(MASK))
    assert seen == [(2, 8, 8)]


@pytest.mark.parametrize("checkpointed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_hooks_on_every_module(checkpointed: bool) -> None:
    """Calls that begin with the same operator, and results of an inner call that only hooks of an outer one see."""
    plain = vit()
    plain.set_grad_checkpointing(checkpointed)
    images, mixed = pictures(), mixture()
    fired: dict[str, list[tuple[str, Tensor]]] = {"plain": [], "aligned": []}
    for kind, model in (("aligned", align(deepcopy(plain))), ("plain", plain)):
        handles = [
            module.register_forward_hook(partial(_note, fired[kind], name)) for name, module in model.named_modules()
        ]
        if kind == "aligned":
            model(images, mixed)  # hooks run at capture, too
            fired[kind].clear()
        output = model(images, mixed)[0] if kind == "aligned" else model(images)
        output.square().sum().backward()
        for handle in handles:
            handle.remove()
    names = [[name for name, _ in fired[kind]] for kind in fired]
    assert names[0] == names[1]
    assert len(set(names[0])) > 20
    values = zip(*([value for _, value in fired[kind]] for kind in fired), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


def _note(fired: list[tuple[str, Tensor]], name: str, module: nn.Module, args: Any, output: Any) -> None:
    own = output[0] if isinstance(output, tuple) else output  # of the aligned model itself, the target follows
    fired.append((name, own.detach().clone()))


class Repeated(nn.Module):
    """Takes a size, and returns it."""

    def forward(self, x: Tensor, batch: int) -> tuple[Tensor, int]:
        return x.reshape(batch, 16, 8).flip(1), batch


def test_hooks_see_sizes_as_numbers() -> None:
    net = Net(lambda s, x: s.part(x, x.shape[0])[0], part=Repeated())
    seen: list[Any] = []
    net.part.register_forward_hook(lambda module, args, output: seen.append((args[1], output[1])))
    aligned = align(net)
    torch.testing.assert_close(share(aligned, IMAGES, MASK), PIXELS.flip(1), rtol=0, atol=1e-6)
    del seen[:]
    images = IMAGES[:1].expand(3, -1, -1, -1)
    aligned(images, target(MASK[:1].expand(3, -1, -1, -1)))
    assert seen == [(3, 3)]


class Failing(Function):
    """Computes something, then fails, as a kernel does that is not built for a device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        raise NotImplementedError(str(x.flip(1).shape))


def test_a_call_that_fails_is_no_region() -> None:
    def run(s: Any, x: Tensor) -> Any:
        try:
            return Failing.apply(x)
        except NotImplementedError:
            return s.part(x) * 2

    with use_rules({Failing: lambda op, function, x: op.pointwise(x), Scores: lambda op, module, x: op.pointwise(x)}):
        torch.testing.assert_close(share(align(Net(run, part=Scores())), IMAGES, MASK), PIXELS, rtol=0, atol=1e-6)


def test_a_failure_elsewhere_is_not_put_down_to_a_function() -> None:
    def run(s: Any, x: Tensor) -> Any:
        try:
            return Failing.apply(x)
        except NotImplementedError:
            pass
        return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"Net cannot be captured as a graph"):
        align(Net(run))(IMAGES, target(MASK))


def test_a_tree_without_some_regions_and_its_copy() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    y, z = graph.call_function(abs, (x,)), graph.call_function(abs, (x,))
    outer = Checkpoint(options={})
    middle = Checkpoint(options={}, parent=outer, inputs=[x], outputs=[z])
    inner = Checkpoint(options={}, parent=middle)
    tree = RegionTree(graph, {y: inner, z: outer})
    assert tree.path_of(y) == (outer, middle, inner)
    assert outer.nodes == [y, z]
    other = Graph()
    copies: dict[Any, Any] = {}
    other.graph_copy(graph, copies)
    copied = tree.copied(other, copies, {copies[y]: inner, copies[z]: outer})
    assert copied.path_of(copies[y])[1].inputs == [copies[x]]
    assert tree.without(graph, {middle}).path_of(y) == (outer, inner)
