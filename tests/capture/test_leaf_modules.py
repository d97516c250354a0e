"""Modules with a rule: one operator each, whatever they do inside."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import aligned_graph, hooks_of, slow_except
from torch import Tensor, nn

from tlfx import Operation, RuleError, align, inspect, use_rules
from tlfx.analysis.invariants import measure, share, target
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext

SIDE, TOKENS = 16, 16
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
PATCHES = nn.functional.avg_pool2d(MASK, 4).flatten(1)
"""The label of each token that patches begin with."""


class Turned(nn.Module):
    """Tokens turned by a number of places, and parameters, noise and running statistics beside."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps = steps
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        mixed = self.drop(self.norm(x.transpose(1, 2))).transpose(1, 2).softmax(1).cumsum(1)
        return x.roll(self.steps, 1) * (1 if scale is None else scale) + 1e-3 * mixed


class Derived(Turned):
    """Of a class that derives from one with a rule."""


class Outer(nn.Module):
    """A module with a rule inside one with another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Turned()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


class Net(nn.Module):
    """Patches as tokens (batch, 16, 8), a function of them and a module; the output keeps the tokens."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Tensor], Any] = lambda m, x: m(x)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.module = module
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(self.module, self.patches(images).flatten(2).transpose(1, 2) * 1)


def turned(op: OpContext, module: Any, x: Value, *, scale: Value | None = None) -> Value:
    return op.remap(x, lambda m: m.roll(module.steps, 1))


def shares(net: nn.Module) -> Tensor:
    return share(align(net), IMAGES, MASK)


def assert_shares(net: nn.Module, *expected: Tensor) -> None:
    torch.testing.assert_close(shares(net), torch.cat(expected, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_module_is_one_operator(training: bool) -> None:
    net = Net(Turned()).train(training)
    assert not torch.allclose(shares(deepcopy(net)), PATCHES.roll(1, 1))
    with use_rules({Turned: turned}):
        assert_shares(net, PATCHES.roll(1, 1))


def test_inspect_shows_inner_nodes_as_constant_and_why() -> None:
    net = Net(Turned())
    with use_rules({Turned: turned}):
        report = inspect(net, IMAGES)
    inside = [n for n in report.nodes if n.module.startswith("module") and n.operator != "get_attr"]
    *inner, last = inside
    assert len(inner) > 5
    assert {n.operation for n in inner} == {Operation.CONSTANT}
    assert {n.why for n in inner} == {"inside Turned, a leaf module (it has a rule)"}
    assert last.operation is Operation.LAYOUT
    assert last.after == "16 tokens × 8"


@pytest.mark.slow
def test_derived_classes_and_the_nearest_rule() -> None:
    with use_rules({Turned: turned}):
        assert_shares(Net(Derived()), PATCHES.roll(1, 1))
        with use_rules({Derived: lambda op, module, x: op.pointwise(x)}):
            assert_shares(Net(Derived()), PATCHES)
            assert_shares(Net(Turned()), PATCHES.roll(1, 1))


def test_the_outer_of_nested_modules_wins() -> None:
    inner, outer = {Turned: turned}, {Outer: lambda op, module, x: op.pointwise(x)}
    with use_rules(inner):
        assert_shares(Net(Outer()), PATCHES.roll(1, 1))
        with use_rules(outer):
            assert_shares(Net(Outer()), PATCHES)
            assert_shares(Net(Turned()), PATCHES.roll(1, 1))


@pytest.mark.slow
def test_a_module_called_twice() -> None:
    with use_rules({Turned: turned}):
        assert_shares(Net(Turned(2), lambda m, x: m(m(x) * 2)), PATCHES.roll(4, 1))
        assert_shares(Net(Turned(2), lambda m, x: (m(x), m(x.flip(1)))), PATCHES.roll(2, 1), PATCHES.flip(1).roll(2, 1))


def test_keyword_arguments_reach_the_rule() -> None:
    seen: dict[str, Any] = {}

    def noting(op: OpContext, module: Any, x: Value, **options: Any) -> Value:
        seen.update(options)
        return turned(op, module, x)

    with use_rules({Turned: noting}):
        assert_shares(Net(Turned(), lambda m, x: m(x=x, scale=x.mean((1, 2), keepdim=True))), PATCHES.roll(1, 1))
    assert isinstance(seen["scale"], Value)
    assert seen["scale"].shape == (2, 1, 1)


class Split(nn.Module):
    """Several outputs: a list of two, and a number that is none."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        halves = x.sigmoid().flip(1).chunk(2, 1)
        return {"halves": list(halves), "scores": x.mean(2), "count": 2}


def test_several_outputs() -> None:
    def split(op: OpContext, module: nn.Module, x: Value) -> list[Value]:
        halves = [op.remap(x, lambda m, i=i: m.flip(1).chunk(2, 1)[i]) for i in range(2)]  # type: ignore[misc]
        return [*halves, op.weight(shape=op.shapes[2])]

    first, second = PATCHES.flip(1).chunk(2, 1)
    with use_rules({Split: split}):
        assert_shares(Net(Split(), lambda m, x: m(x)["halves"]), first, second)
        assert_shares(Net(Split(), lambda m, x: m(x)["halves"][1]), second)
        assert_shares(Net(Split(), lambda m, x: [x, m(x)["scores"]][:1]), PATCHES)


def test_a_rule_that_gives_too_few_values() -> None:
    words = r"the rule .* gives 1 values for a module that returns 3 tensors\n  node: .*\n  module: module \(Split\)"
    with use_rules({Split: lambda op, module, x: op.pointwise(x)}), pytest.raises(RuleError, match=words):
        shares(Net(Split()))


def test_an_output_equal_to_the_input() -> None:
    with use_rules({nn.Identity: lambda op, module, x: op.pointwise(x)}):
        assert_shares(Net(nn.Identity()), PATCHES)
        assert_shares(Net(nn.Identity(), lambda m, x: (m(x), m(x.flip(1)) * 2)), PATCHES, PATCHES.flip(1))


@pytest.mark.slow
def test_a_module_without_content_or_use() -> None:
    with use_rules({Turned: turned}):
        assert_shares(Net(Turned(), lambda m, x: x + m(torch.ones_like(x))), PATCHES)
        assert_shares(Net(Turned(), lambda m, x: (m(x), x)[1]), PATCHES)


class InPlace(nn.Module):
    """Writes into what it is given, and returns that, or something else."""

    def __init__(self, returned: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        x.copy_(x.flip(1))
        return self.returned(x)


def flipped(op: OpContext, module: nn.Module, x: Value) -> Value:
    return op.remap(x, lambda m: m.flip(1))


def through_a_view(module: nn.Module, x: Tensor) -> Tensor:
    base = x.transpose(1, 2).contiguous()
    module(base.transpose(1, 2))
    return base.transpose(1, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m(x),
        pytest.param(lambda m, x: (m(x), x)[1], marks=pytest.mark.slow),
        pytest.param(lambda m, x: m(x) + x, marks=pytest.mark.slow),
        through_a_view,
    ],
    ids=["returned", "argument", "both", "through a view"],
)
def test_a_module_that_writes_in_place(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    assert_shares(Net(InPlace(), function), PATCHES.flip(1))
    with use_rules({InPlace: flipped}):
        assert_shares(Net(InPlace(), function), PATCHES.flip(1))


def test_a_module_that_writes_to_part_of_its_input() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[:, :4] = x[:, 4:8].exp()
            return x

    def first(op: OpContext, module: nn.Module, x: Value) -> Value:
        return op.remap(x, lambda m: torch.cat((m[:, 4:8], m[:, 4:]), 1))

    expected = torch.cat((PATCHES[:, 4:8], PATCHES[:, 4:]), 1)
    with use_rules({First: first}):
        assert_shares(Net(First()), expected)
        assert_shares(Net(First(), lambda m, x: (m(x), x)[1]), expected)


def test_a_write_that_no_output_shows() -> None:
    exp = InPlace(torch.exp)
    with use_rules({InPlace: flipped}):
        assert_shares(Net(exp), PATCHES.flip(1))
        words = r"InPlace is a leaf module \(it has a rule\), and copy_.* is read after it: no rule can tell its label"
        with pytest.raises(RuleError, match=words):
            shares(Net(exp, lambda m, x: m(x) + x))


class Remembering(nn.Module):
    """Keeps what it computes on the way, for others to read, and a running mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + x.detach().mean()
        self.kept = x.flip(1)
        return self.kept * 2


def test_what_leaves_a_module_without_being_returned() -> None:
    with use_rules({Remembering: flipped}):
        assert_shares(Net(Remembering()), PATCHES.flip(1))
        words = r"Remembering is a leaf module \(it has a rule\), and flip, which it computes"
        with pytest.raises(RuleError, match=words):
            shares(Net(Remembering(), lambda m, x: m(x) + m.kept))


@pytest.mark.parametrize("module", slow_except([Outer], [Turned, Derived, Outer]))
def test_outputs_gradients_and_buffers_are_bit_equal(module: type[nn.Module]) -> None:
    class Classifier(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(Net(module()), nn.Flatten(), nn.Linear(8 * TOKENS, 5))

    with use_rules({Turned: turned}):
        figures = measure(Classifier(), (3, SIDE, SIDE))
    assert figures.passed
    assert (figures.logits, figures.gradients, figures.buffers) == (0, 0, 0)


class Learned(nn.Module):
    """Token mixing by learned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(TOKENS, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x).tanh()


def weights(module: Any) -> Tensor:
    return module.weight[None]


def test_parameters_are_read_at_every_call() -> None:
    with use_rules({Learned: lambda op, module, x: op.mix_by(weights, x, module)}):
        net = align(Net(Learned()))
        for _ in range(2):
            mixing = nn.functional.normalize(net.module.weight.detach(), p=1, dim=1)
            assert_shares_of(net, PATCHES @ mixing.T)
            net.load_state_dict({k: v.clone().uniform_() for k, v in net.state_dict().items()}, assign=True)
        assert_shares_of(deepcopy(net), PATCHES @ nn.functional.normalize(net.module.weight.detach(), p=1, dim=1).T)


def assert_shares_of(aligned: nn.Module, expected: Tensor) -> None:
    torch.testing.assert_close(share(aligned, IMAGES, MASK), expected, rtol=0, atol=1e-6)


class Stubborn(nn.Module):
    """Computes with its batch size, so that it is captured for one size only."""

    def forward(self, x: Tensor) -> Tensor:
        size = int(x.shape[0])
        return x.reshape(size * 4, 4, 8).softmax(1).view(size, TOKENS, 8)


def test_a_batch_size_that_is_fixed() -> None:
    model = align(Net(Stubborn(), lambda m, x: m(x).roll(int(x.shape[0]), 1)))
    with use_rules({Stubborn: lambda op, module, x: op.pointwise(x)}):
        for batch in (2, 3):
            _, soft = model(torch.rand(batch, 3, SIDE, SIDE), target(MASK[:1].expand(batch, -1, -1, -1)))
            torch.testing.assert_close(soft[:, :, 0], PATCHES[:1].roll(batch, 1).expand(batch, -1))


def test_marks_are_gone_after_a_capture() -> None:
    net = Net(Turned())
    with use_rules({Turned: turned}):
        graph = aligned_graph(align(net), IMAGES)
    assert not [node for node in graph.nodes if "mark" in f"{node.name} {node.target}"]
    assert not hooks_of(net)
