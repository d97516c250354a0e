"""Calls of torch.autograd.Function: forward and backward are the user's, and labels follow the traced forward."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from helpers import aligned_graph
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tlfx import CaptureError, RuleError, align, use_rules
from tlfx.analysis.invariants import share, target
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext

SIDE, CHANNELS, TOKENS = 4, 8, 16
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
PIXELS = MASK.flatten(1)
"""The label of each token, of which there is one a pixel."""


class Net(nn.Module):
    """One token a pixel, (batch, 16, 8), and a function of them; the output keeps the tokens."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.mix = nn.Linear(CHANNELS, CHANNELS)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Any:
        return self.function(self, self.mix(self.stem(images).flatten(2).transpose(1, 2)))


def three_steps(net: nn.Module, images: Tensor, aligned: bool) -> list[Tensor]:
    """Outputs and gradients of three steps, then the parameters."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen: list[Tensor] = []
    for step in range(3):
        torch.manual_seed(step)
        out = net(images, target(MASK))[0] if aligned else net(images)
        outs = [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor)]
        loss = torch.stack([o.square().mean() for o in outs if o.is_floating_point()]).sum()
        optimizer.zero_grad()
        loss.backward()
        seen += [o.detach().clone() for o in outs]
        seen += [torch.full_like(p, torch.nan) if p.grad is None else p.grad.clone() for p in net.parameters()]
        optimizer.step()
    return seen + [p.detach().clone() for p in net.parameters()]


def assert_same(net: nn.Module, *expected: Tensor) -> None:
    """Three steps are those of the plain model, bit for bit; labels of the outputs are as ``expected``."""
    aligned = align(deepcopy(net))
    if expected:
        torch.testing.assert_close(share(aligned, IMAGES, MASK), torch.cat(expected, 1), rtol=0, atol=1e-6)
    plain = three_steps(net, IMAGES, aligned=False)
    for one, other in zip(plain, three_steps(aligned, IMAGES, aligned=True), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


class Straight(Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Reversed(Function):
    """The identity; gradients are reversed and scaled by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -ctx.scale * grad, None


class Swish(Function):
    """In the style with setup_context, vmap-able."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, beta: float = 1.0) -> Tensor:
        return x * torch.sigmoid(beta * x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.beta = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        s = torch.sigmoid(ctx.beta * ctx.saved_tensors[0])
        return grad * s * 1.5, None


class Halves(Function):
    """Several inputs and outputs, numbers and None among them, and indices that have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, sizes: list[int], flag: bool) -> Any:
        ctx.given, ctx.flag = ctx.needs_input_grad, flag
        first, second = x.split(sizes, 1)
        indices = torch.arange(4, device=x.device)
        ctx.mark_non_differentiable(indices)
        return first * 2, None, second.flip(1), indices, 7

    @staticmethod
    def backward(ctx: Any, first: Tensor, _: Any, second: Tensor, *rest: Any) -> Any:
        assert ctx.given == (True, False, False, False)
        return torch.cat((first * 3, second.flip(1) * 5), 1), None, None, None


class Doubled(Function):
    """Writes to its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 0.5


class Twice(Function):
    """Returns one tensor twice, each with a separate gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.flip(1)
        return y, y.clone()

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return 2 * a.flip(1) + 3 * b.flip(1)


class Recomputed(Function):
    """Runs a module without saving what it computes, and again in backward: gradients go on inside."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            return module(x).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.module(x)
        grads = torch.autograd.grad(y, (x, *ctx.module.parameters()), grad)
        return None, *grads


class Outer(Function):
    """Calls another function in its forward and in its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Straight.apply(x).roll(1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad.roll(-1, 1)


class Activation(nn.Module):
    """A function in a module."""

    def forward(self, x: Tensor) -> Tensor:
        return swish(x * 2, 0.5)


swish = Swish.apply
"""As many libraries write it: bound when the module is imported."""


def test_straight_through() -> None:
    assert_same(Net(lambda s, x: Straight.apply(x * 4) / 4), PIXELS)


def test_a_function_that_returns_its_input() -> None:
    assert_same(Net(lambda s, x: Reversed.apply(x, 0.3)), PIXELS)
    assert_same(Net(lambda s, x: x.flip(1) + 2 * Reversed.apply(x, 0.3)))
    assert_same(Net(lambda s, x: x * 2 + Reversed.apply(x, 0.3)), PIXELS)


@pytest.mark.slow
def test_setup_context_bound_when_imported() -> None:
    assert_same(Net(lambda s, x: swish(x)), PIXELS)
    assert_same(Net(lambda s, x: Swish.apply(swish(x), 2.0).flip(1)), PIXELS.flip(1))


def test_several_outputs_none_and_numbers() -> None:
    def halves(s: Any, x: Tensor) -> Any:
        first, none, second, indices, number = Halves.apply(x, None, [4, 12], True)
        assert none is None
        assert number == 7
        return first[:, indices], second * number

    first, second = PIXELS.split([4, 12], 1)
    assert_same(Net(halves), first, second.flip(1))


@pytest.mark.slow
def test_one_output_used() -> None:
    assert_same(Net(lambda s, x: Halves.apply(x, None, [4, 12], True)[2]), PIXELS[:, 4:].flip(1))


@pytest.mark.slow
def test_two_outputs_with_gradients_of_their_own() -> None:
    def twice(s: Any, x: Tensor) -> Tensor:
        a, b = Twice.apply(x)
        return a + b * 2

    assert_same(Net(twice), PIXELS.flip(1))


def test_a_function_that_writes_in_place_once_differentiable() -> None:
    assert_same(Net(lambda s, x: Doubled.apply(x.clone()).flip(1)), PIXELS.flip(1))

    def written(s: Any, x: Tensor) -> Tensor:
        y = x.flip(1).clone()
        Doubled.apply(y)
        return y + 1

    assert_same(Net(written), PIXELS.flip(1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_in_a_module_under_checkpoint(reentrant: bool) -> None:
    def run(s: Any, x: Tensor) -> Any:
        return checkpoint(lambda y: s.drop(s.act(y)), x, use_reentrant=reentrant)

    assert_same(Net(run, act=Activation(), drop=nn.Dropout(0.2)), PIXELS)


def test_in_a_module_with_hooks() -> None:
    net = Net(lambda s, x: s.act(x).flip(1), act=Activation())
    calls: list[str] = []
    net.act.register_forward_hook(lambda *_: calls.append("forward"))
    net.act.register_full_backward_hook(lambda *_: calls.append("backward"))
    plain, aligned = net, align(deepcopy(net))
    three_steps(plain, IMAGES, aligned=False)
    assert calls == ["forward", "backward"] * 3
    assert_same(Net(lambda s, x: s.act(x).flip(1), act=Activation()), PIXELS.flip(1))
    del calls[:]
    three_steps(aligned, IMAGES, aligned=True)
    assert calls[-6:] == ["forward", "backward"] * 3


def test_a_module_among_the_arguments() -> None:
    def run(s: Any, x: Tensor) -> Any:
        return Recomputed.apply(s.inner, x, *s.inner.parameters()) * 2

    assert_same(Net(run, inner=nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.Tanh())), PIXELS)

    def without_gradients(s: Any, x: Tensor) -> Any:
        with torch.no_grad():
            y = Recomputed.apply(s.inner, x, *s.inner.parameters())
            z = y * x
        return x * 2 + z

    assert_same(Net(without_gradients, inner=nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.Tanh())), PIXELS)


def test_a_function_in_a_function() -> None:
    assert_same(Net(lambda s, x: Outer.apply(x * 3)), PIXELS.roll(1, 1))


def test_sizes_among_the_arguments() -> None:
    class Sized(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, batch: int) -> Tensor:
            ctx.batch = batch
            return x.reshape(batch * 4, 4, CHANNELS).flip(1).reshape(batch, TOKENS, CHANNELS)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad / ctx.batch, None

    expected = PIXELS.view(2, 4, 4).flip(2).flatten(1)
    net = Net(lambda s, x: Sized.apply(x, x.shape[0]) + x.new_zeros(x.shape[0] * 4, 4, CHANNELS).view_as(x))
    assert_same(net, expected)
    aligned = align(net)
    for batch in (2, 3):
        mask = MASK[:1].expand(batch, -1, -1, -1)
        torch.testing.assert_close(
            share(aligned, IMAGES[:1].repeat(batch, 1, 1, 1), mask), expected[:1].repeat(batch, 1)
        )


def test_a_class_made_in_forward() -> None:
    def run(s: Any, x: Tensor) -> Any:
        class Local(Function):
            @staticmethod
            def forward(ctx: Any, y: Tensor) -> Tensor:
                return y.sign() * 1.0

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                return grad * 2

        return Local.apply(x)

    assert_same(Net(run), PIXELS)


def test_a_class_made_in_forward_that_holds_its_tensors_is_refused() -> None:
    def run(s: Any, x: Tensor) -> Any:
        class Local(Function):
            @staticmethod
            def forward(ctx: Any, y: Tensor) -> Tensor:
                return y * x

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                return grad * 2

        return Local.apply(x)

    words = (
        r"(?s)autograd function .*Local holds 'x' of the forward that defines it.*source: .*\.py:\d+.*argument of apply"
    )
    with pytest.raises(CaptureError, match=words):
        align(Net(run))(IMAGES, target(MASK))


def test_forward_called_by_itself_is_no_function() -> None:
    assert_same(Net(lambda s, x: Straight.forward(None, x * 4) + x + cast(Any, Swish).forward(x)), PIXELS)


class Attention(Function):
    """Attention whose weights are computed inside."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return (q @ k.mT).softmax(-1) @ v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            out = (q @ k.mT).softmax(-1) @ v
        return tuple(2 * g for g in torch.autograd.grad(out, (q, k, v), grad))


def attend(s: Any, x: Tensor) -> Any:
    return Attention.apply(s.mix(x) * 3, x, x)


def test_labels_that_need_a_value_from_inside_are_refused() -> None:
    words = (
        r"(?s)labels need softmax.*, which the autograd function Attention computes inside.*"
        r"module: .*source: .*in forward.*function: .*test_autograd_functions\.py:\d+.*@tlfx\.rules\.rule\(Attention\)"
    )
    with pytest.raises(RuleError, match=words):
        align(Net(attend))(IMAGES, target(MASK))


def test_a_rule_of_a_class() -> None:
    seen: list[Any] = []

    def attention(op: OpContext, function: type[Function], q: Value, k: Value, v: Value) -> Value:
        seen.append(function)
        return op.attend(q, k, v, scale=1.0)

    plain = Net(lambda s, x: (s.mix(x) * 3 @ x.mT).softmax(-1) @ x)
    expected = share(align(plain), IMAGES, MASK)
    with use_rules({Attention: attention}):
        assert_same(Net(attend), expected)
    assert set(seen) == {Attention}


@pytest.mark.slow
def test_a_rule_of_a_base_class() -> None:
    class Derived(Straight):
        pass

    with use_rules({Straight: lambda op, function, x: op.remap(x, lambda m: m.flip(1))}):
        assert_same(Net(lambda s, x: Derived.apply(x * 4)), PIXELS.flip(1))
        assert_same(Net(lambda s, x: Outer.apply(x * 4)), PIXELS.flip(1).roll(1, 1))


def test_labels_from_arguments_and_outputs() -> None:
    """Attention inside whose operator computes the weights itself is read from its arguments."""

    class Fused(Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            ctx.save_for_backward(q, k, v)
            return nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad, 2 * grad, 3 * grad

    expected = share(align(Net(lambda s, x: (s.mix(x) * 3 @ x.mT).softmax(-1) @ x)), IMAGES, MASK)
    assert_same(Net(lambda s, x: Fused.apply(s.mix(x)[:, None] * 3, x[:, None], x[:, None])[:, 0]), expected)


class Counted(Function):
    """Reads a value of a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * float(x.detach().numpy().max())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("rules", [{}, {Counted: lambda op, function, x: op.pointwise(x)}], ids=["no rule", "a rule"])
def test_a_forward_that_cannot_be_captured_is_refused(rules: dict[Any, Any]) -> None:
    words = r"(?s)forward of the autograd function Counted cannot be captured.*test_autograd.*in forward.*custom_op"
    with use_rules(rules), pytest.raises(CaptureError, match=words):
        align(Net(lambda s, x: Counted.apply(x)))(IMAGES, target(MASK))


class Leaking(Function):
    """Keeps what it computes where others read it."""

    kept: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Leaking.kept = x.flip(1)
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Reading(Function):
    """Reads what it is not given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * Reading.held  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_values_that_go_around_apply_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"(?s)Leaking computes flip, which is read outside.*Return it from forward"):
        align(Net(lambda s, x: Leaking.apply(x) + Leaking.kept))(IMAGES, target(MASK))

    def reading(s: Any, x: Tensor) -> Tensor:
        Reading.held = x * 2  # type: ignore[attr-defined]
        return cast(Tensor, Reading.apply(x))

    with pytest.raises(CaptureError, match=r"(?s)Reading reads mul, .* not among its arguments.*argument of apply"):
        align(Net(reading))(IMAGES, target(MASK))


def test_the_code_calls_the_function_and_capture_leaves_it_as_it_was() -> None:
    forwards = {f: vars(f)["forward"] for f in (Straight, Swish, Doubled)}
    graph = aligned_graph(align(Net(lambda s, x: Straight.apply(x * 4))), IMAGES)
    assert "Straight_apply" in [target.__name__ for target in (node.target for node in graph.nodes) if callable(target)]
    assert not graph.find_nodes(op="call_function", target=torch.ops.aten.round.default)
    assert all(vars(f)["forward"] is forward for f, forward in forwards.items())
    assert "__init_subclass__" not in vars(Function)
