"""An aligned call does what a plain call does: three training steps, and what they leave behind, are compared."""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_same, pictures, slow_except
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tlfx
from tlfx.capture.modes import autocast_depth
from tlfx.errors import CaptureError

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """One token for each of 4 × 4 patches, then `body(self, tokens)`: (batch, 5)."""

    def __init__(self, body: Body, **state: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(16, 16), nn.Linear(8, 5)
        self.body = body
        self.register_buffer("count", torch.zeros(()))
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.body(self, self.mix(tokens.mT).mT)).mean(1)


def target(batch: int) -> tlfx.MixedTarget:
    """The left half of one image beside the right half of the other."""
    mask = torch.ones(batch, 1, 16, 16)
    mask[..., :7] = 0
    first = torch.arange(batch) % 5
    return tlfx.MixedTarget(first=first, second=first.flip(0), mask=mask, num_classes=5)


def state_of(model: nn.Module) -> list[Any]:
    """What modules hold beside torch's own attributes and the body."""
    hidden = {*vars(nn.Module()), "body", "frequencies"}
    held = [{k: v for k, v in vars(m).items() if k not in hidden and k[0] != "_"} for m in model.modules()]
    return [{k: vars(v) if isinstance(v, SimpleNamespace) else v for k, v in attributes.items()} for attributes in held]


def trained(model: nn.Module, is_aligned: bool, batches: tuple[int, ...] = (4, 4, 3), seed: int = 0) -> list[Any]:
    """Outputs, gradients, buffers and state of each of three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    seen = []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        images = pictures(batch, seed=step)
        output = model(images, target(batch))[0] if is_aligned else model(images)
        loss = output.square().sum() + sum(extra.sum() for extra in vars(model).get("losses", []))
        optimizer.zero_grad()
        loss.backward()
        kept = [output.detach(), *(None if p.grad is None else p.grad.clone() for p in model.parameters())]
        seen.append([*kept, *map(torch.clone, model.buffers()), deepcopy_detached(state_of(model))])
        optimizer.step()
    return seen


def deepcopy_detached(state: Any) -> Any:
    """State without the graphs of gradients; gradients that retain_grad kept are beside their tensors."""

    def copied(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        with_gradient = x.requires_grad and (x.is_leaf or x.retains_grad) and x.grad is not None
        return (x.detach().clone(), x.grad.clone() if with_gradient and x.grad is not None else None)

    return [{name: torch.utils._pytree.tree_map(copied, value) for name, value in held.items()} for held in state]


def assert_same_training(body: Body, make: Callable[..., nn.Module] = Net, **state: Any) -> nn.Module:
    """Both models see the same, bit for bit; the plain one runs first, so that shared caches are filled by it."""
    plain, aligned = make(body, **deepcopy(state)), tlfx.align(make(body, **deepcopy(state)))
    expected, seen = trained(plain, False), trained(aligned, True)
    assert_same(seen, expected)
    return aligned


# modes


def nested(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        a = x * 2
        with torch.enable_grad():
            b = x * 3
            with torch.inference_mode():
                c = x.mean(1, keepdim=True)
        d = b * 2
    return a + b * c.clone() + d


def autocast_and_none(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        a = net.head.weight @ x.mT
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False), torch.enable_grad():
            b = x @ x.mT
        c = x @ x.mT
    return x * a.float().mean((1, 2), keepdim=True) + (b + c.float()) @ x


def cached_casts(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = (net.head(x) + net.head(x * 2)) @ net.head.weight
    return y.float()


def cast_under_a_checkpoint(net: Any, x: Tensor) -> Tensor:
    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # the recomputation ends within
            return net.head(x) @ net.head.weight

    return checkpoint(cast, x, use_reentrant=False).float()


@torch.no_grad()
def statistic(x: Tensor) -> Tensor:
    """Without gradients, by a decorator."""
    return x.std(1, keepdim=True)


@torch.inference_mode()
def inferred(x: Tensor) -> Tensor:
    """In inference mode, by a decorator."""
    return x.amax(1, keepdim=True)


def decorated(net: Any, x: Tensor) -> Tensor:
    return x / (1 + statistic(x)) + inferred(x).clone() * x


def by_function(net: Any, x: Tensor) -> Tensor:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    a = x * 2
    torch.set_grad_enabled(before)
    with torch.set_grad_enabled(False):
        b = x * 5
    with torch.inference_mode(mode=False):
        c = x * 7
    return a + b + c


def reused(net: Any, x: Tensor) -> Tensor:
    manager = torch.no_grad()
    with manager:
        a = x * 2
        with torch.enable_grad(), manager:
            b = x * 3
    with manager:
        return a + b + x


def left_by_an_error(net: Any, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            raise KeyError
    except KeyError:
        pass
    return x * 2


MODES = [
    nested,
    autocast_and_none,
    cached_casts,
    cast_under_a_checkpoint,
    decorated,
    by_function,
    reused,
    left_by_an_error,
]


@pytest.mark.parametrize(
    "body",
    slow_except((nested, autocast_and_none, cached_casts, cast_under_a_checkpoint), MODES),
    ids=lambda f: f.__name__,
)
def test_modes(body: Body) -> None:
    aligned = assert_same_training(body if body is not reused else lambda n, x: reused(n, x) + x)
    with torch.no_grad():  # leaving a mode restores the caller's
        assert not aligned(pictures(), target(3))[0].requires_grad


def raising() -> tuple[nn.Module, Callable[[], None]]:
    """A module that doubles, and a function after whose call a hook of that module raises RuntimeError("as asked")."""

    class Raises(nn.Module):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    def hook(module: Raises, args: Any, output: Any) -> None:
        if Raises.fails:
            raise RuntimeError("as asked")

    def fail() -> None:
        Raises.fails = True

    module = Raises()
    module.register_forward_hook(hook)
    return module, fail


def test_an_error_leaves_the_modes_of_the_caller() -> None:
    def failing(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net.custom(x)

    doubling, fail = raising()
    model = tlfx.align(Net(failing, custom=doubling))
    model(pictures(), target(3))
    fail()
    with pytest.raises(RuntimeError, match="as asked"):
        model(pictures(), target(3))
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert autocast_depth() == 0


# calls on tensors


def halved(net: Any, x: Tensor) -> Tensor:
    y = x * 2
    if y.requires_grad:
        y.register_hook(lambda g: g * 0.5)
    return y


def scaled_by_a_value(net: Any, x: Tensor) -> Tensor:
    scale = x.detach().mean(1, keepdim=True)
    y = x * 2
    y.register_hook(lambda g: g * scale)
    size = scale.abs()
    y.register_hook(lambda g, s=size: g + s)
    y.register_hook(functools.partial(torch.add, scale))
    return y


def scaled_by_size(net: Any, x: Tensor) -> Tensor:
    batch = x.shape[0]

    def hook(g: Tensor) -> Tensor:
        return g / batch

    x.register_hook(hook)
    return x


def clipped_by_itself(net: Any, x: Tensor) -> Tensor:
    y = x * 3
    y.register_hook(lambda g: g.clamp(-1, 1) * y.sign())
    return y


def kept_gradient(net: Any, x: Tensor) -> Tensor:
    net.features = x * 1
    net.features.retain_grad()
    return net.features


def noted_gradient(net: Any, x: Tensor) -> Tensor:
    y = x * 1
    y.register_hook(net.noted.append)
    return y


def halve(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


def on_a_parameter(net: Any, x: Tensor) -> Tensor:
    net.mix.weight.register_hook(lambda g: g * 0.9)
    net.mix.bias.register_post_accumulate_grad_hook(halve)
    return x


def removed(net: Any, x: Tensor) -> Tensor:
    y, z = x * 2, x * 3
    handle = y.register_hook(lambda g: g * 100)
    handle.remove()
    net.handle = z.register_hook(lambda g: g * 2)
    return y + z


def required_by_assignment(net: Any, x: Tensor) -> Tensor:
    w = x.detach()
    w.requires_grad = True
    w.register_hook(net.noted.append)
    return x + w.mean(1, keepdim=True)


def around_a_write(net: Any, x: Tensor) -> Tensor:
    y = x * 2
    y.register_hook(hook=lambda g: g * 3)
    y.add_(1)
    y.register_hook(lambda g: g * 5)
    return y


def for_a_while(net: Any, x: Tensor) -> Tensor:
    y = x * 2
    with y.register_hook(lambda g: g * 3):
        return y * 2


def under_a_checkpoint(net: Any, x: Tensor) -> Tensor:
    def inner(a: Tensor) -> Tensor:
        net.inner = a.detach().mean()
        a = a * 2
        if a.requires_grad:
            a.register_hook(lambda g: g * 0.5)
        return a

    y: Tensor = checkpoint(inner, x, use_reentrant=False)
    return y


def without_gradients_inside(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = x.mean(1, keepdim=True).sigmoid()
    gate.requires_grad_()
    gate.register_hook(net.noted.append)
    return x * gate


TENSOR_CALLS = [
    halved, scaled_by_a_value, scaled_by_size, clipped_by_itself, kept_gradient, noted_gradient, on_a_parameter,
    required_by_assignment, around_a_write, for_a_while, under_a_checkpoint, without_gradients_inside,
]  # fmt: skip


SOME_CALLS = (halved, scaled_by_a_value, on_a_parameter, required_by_assignment, under_a_checkpoint)


@pytest.mark.parametrize("body", slow_except(SOME_CALLS, TENSOR_CALLS), ids=lambda f: f.__name__)
def test_calls_on_tensors(body: Body) -> None:
    aligned = assert_same_training(body, noted=[])
    aligned.zero_grad()
    with torch.no_grad():
        aligned(pictures(), target(3))


@pytest.mark.slow
def test_compiled_calls() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        net.attention = (x @ x.mT).softmax(-1)
        net.features["mean"] = x.mean(1)
        y = net.attention @ x
        y.register_hook(lambda g: g * 2)
        return y

    plain, aligned = Net(body, features={}), tlfx.align(Net(body, features={}), example=pictures())
    compiled = torch.compile(aligned, backend="eager")
    for _ in range(2):
        expected, (output, _) = plain(pictures()), compiled(pictures(), target(3))
        expected.sum().backward()
        output.sum().backward()
        assert_same(output, expected)
        assert_same(state_of(aligned), state_of(plain))
        assert_same([p.grad for p in aligned.parameters()], [p.grad for p in plain.parameters()])


def test_a_handle_that_the_forward_keeps_removes_the_hook() -> None:
    model = tlfx.align(Net(removed))
    images = pictures()
    gradients = []
    for remove in (False, True):
        model.zero_grad()
        output, _ = model(images, target(3))
        if remove:
            model.handle.remove()
        output.sum().backward()
        gradients.append(model.stem.weight.grad.clone())
    torch.testing.assert_close(gradients[0] / gradients[1], torch.full_like(gradients[0], 8 / 5), rtol=1e-3, atol=1e-3)


def removing_the_last(net: Any, x: Tensor) -> Tensor:
    if net.handle is not None:
        net.handle.remove()
    net.handle = net.mix.weight.register_hook(lambda g: g * 2)
    return x


def reading_a_gradient(net: Any, x: Tensor) -> Tensor:
    return x if net.mix.weight.grad is None else x * net.mix.weight.grad.norm()


def on_several(net: Any, x: Tensor) -> Tensor:
    torch.autograd.graph.register_multi_grad_hook((x,), lambda gradients: None)
    return x


def on_the_graph(net: Any, x: Tensor) -> Tensor:
    y = x * 2
    if y.grad_fn is not None:
        y.grad_fn.register_prehook(lambda gradients: None)
    return y


def assigned_data(net: Any, x: Tensor) -> Tensor:
    net.count.data = net.count + 1
    return x


def random_state(net: Any, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return x * torch.rand(8)


def seeded(net: Any, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x * torch.rand(8)


def packed(net: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda a: a * 2, lambda a: a):
        return x * x


def assigned_later(net: Any, x: Tensor) -> Tensor:
    scale = x.mean()
    x.register_hook(lambda g: g * scale)
    scale = x.std()
    return x * scale


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (removing_the_last, "removes a hook that was registered before.*outside of the forward"),
        (reading_a_gradient, "reads the gradient of a tensor.*after backward"),
        (on_several, "registers hooks on the graph of gradients.*use Tensor.register_hook"),
        (on_the_graph, "registers hooks on the graph of gradients"),
        (
            assigned_data,
            r"(?s)assigns Tensor.data.*use copy_ under torch.no_grad.*in assigned_data",
        ),
        (random_state, r"(?s)the random state of torch \(torch.fork_rng\).*outside of the forward.*in random_state"),
        (seeded, r"(?s)the random state of torch \(torch.manual_seed\).*in seeded"),
        (packed, r"(?s)changes tensors that autograd saves.*around the call of the model.*in packed"),
        (assigned_later, "register_hook reads variables that the forward assigns after.*before it"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_calls_on_tensors_that_cannot_be_repeated(body: Body, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        tlfx.align(Net(body, handle=None))(pictures(), target(3))


# state that the graph computes


def attribute(net: Any, x: Tensor) -> Tensor:
    net.attention = (x @ x.mT).softmax(-1)
    return net.attention @ x


def detached(net: Any, x: Tensor) -> Tensor:
    net.mix.kept = x.detach()
    return x


def auxiliary_loss(net: Any, x: Tensor) -> Tensor:
    net.losses = [x.abs().mean(), 0.5 * (x.std(1)).mean()]
    return x


class Pair(NamedTuple):
    mean: Tensor
    size: int


def structures(net: Any, x: Tensor) -> Tensor:
    net.stored = {"mean": x.mean(1), "parts": (x[:, 0], [x[:, 1]]), "name": "x", "n": x.shape[1]}
    net.pair = Pair(x.mean(), x.shape[0])
    net.ordered = OrderedDict(a=x[:, 0], b=None)
    return x


def entry(net: Any, x: Tensor) -> Tensor:
    net.features["last"] = x.detach()
    net.features["norm"] = x.norm()
    return x


def cleared_list(net: Any, x: Tensor) -> Tensor:
    net.outputs.clear()
    for i in range(3):
        net.outputs.append(x[:, i].detach())
    return x


def bounded(net: Any, x: Tensor) -> Tensor:
    net.latest = deque([x.mean().detach()], maxlen=2)
    return x


def moving_average(net: Any, x: Tensor) -> Tensor:
    before, net.mean = net.mean, 0.9 * net.mean + 0.1 * x.detach().mean((0, 1))
    return x - before


def moving_average_in_place(net: Any, x: Tensor) -> Tensor:
    y = x - net.mean
    net.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
    return y


def first_then_average(net: Any, x: Tensor) -> Tensor:
    mean = x.detach().mean((0, 1))
    y = x if net.running is None else x - net.running
    net.running = mean if net.running is None else net.running.lerp(mean, 0.1)
    return y


def buffers(net: Any, x: Tensor) -> Tensor:
    net.count = net.count + 1
    net.count += 1
    return x * net.count


def sizes(net: Any, x: Tensor) -> Tensor:
    net.shape, net.batch, net.tokens = x.shape, len(x), x.shape[1]
    return x


def a_number(net: Any, x: Tensor) -> Tensor:
    net.value = x.detach().mean().item()
    return x


def set_again(net: Any, x: Tensor) -> Tensor:
    net.window = min(4, x.shape[1])
    net.settings = {"window": net.window, "heads": [1, 2]}
    return x.unflatten(1, (-1, net.window)).flatten(1, 2)


def queue(net: Any, x: Tensor) -> Tensor:
    y = x + net.queue.mean(0)
    net.queue = torch.cat((net.queue[1:], x.detach().mean((0, 1))[None]))
    return y


def average_in_a_dictionary(net: Any, x: Tensor) -> Tensor:
    y = x - net.stats["mean"]
    net.stats["mean"] = 0.9 * net.stats["mean"] + 0.1 * x.detach().mean((0, 1))
    return y


def average_in_a_list(net: Any, x: Tensor) -> Tensor:
    y = x - net.averages[0]
    net.averages[0] = 0.9 * net.averages[0] + 0.1 * x.detach().mean((0, 1))
    return y


def by_name(net: Any, x: Tensor) -> Tensor:
    for i in range(3):
        setattr(net, f"token_{i}", x[:, i])
    object.__setattr__(net, "hidden", x.detach())
    vars(net)["raw"] = x + 1
    return x


def temporary(net: Any, x: Tensor) -> Tensor:
    net.tmp = x.detach()
    net.outputs.append(x * 2)
    y = net.tmp * net.outputs.pop()
    del net.tmp
    return y


def late_buffer(net: Any, x: Tensor) -> Tensor:
    net.register_buffer("late", x.detach().mean())
    return x


def once(net: Any, x: Tensor) -> Tensor:
    y = x / net.scale if net.is_ready else x
    if not net.is_ready:
        net.scale, net.is_ready = x.detach().std(), True
    return y


def parameters_by_data(net: Any, x: Tensor) -> Tensor:
    net.mix.weight.data.mul_(0.99)
    net.head.weight.data.clamp_(-0.1, 0.1)
    return x * x.data.mean(1, keepdim=True)


def on_an_object(net: Any, x: Tensor) -> Tensor:
    net.context.hidden = x.detach()
    net.context.tokens = x.shape[1]
    return x


def turned_off(net: Any, x: Tensor) -> Tensor:
    net.mix.eval()
    return x


STATE: list[tuple[Body, dict[str, Any]]] = [
    (attribute, {}), (detached, {}), (auxiliary_loss, {}), (structures, {}), (entry, {"features": {}}),
    (cleared_list, {"outputs": []}), (bounded, {}), (moving_average, {"mean": torch.zeros(8)}),
    (moving_average_in_place, {"mean": torch.zeros(8)}), (first_then_average, {"running": None}), (buffers, {}),
    (average_in_a_dictionary, {"stats": {"mean": torch.zeros(8)}}), (average_in_a_list, {"averages": [torch.zeros(8)]}),
    (by_name, {}), (temporary, {"outputs": []}), (late_buffer, {}), (once, {"is_ready": False}),
    (parameters_by_data, {}), (on_an_object, {"context": SimpleNamespace(hidden=None, tokens=0)}),
    (sizes, {}), (a_number, {}), (set_again, {}), (queue, {"queue": torch.zeros(5, 8)}), (turned_off, {}),
]  # fmt: skip


SOME_STATE = (
    attribute, cleared_list, moving_average, moving_average_in_place, buffers, once, set_again,
)  # fmt: skip
EVERY_RUN = [case for case in STATE if case[0] in SOME_STATE]


@pytest.mark.parametrize(("body", "state"), slow_except(EVERY_RUN, STATE), ids=lambda x: getattr(x, "__name__", ""))
def test_state(body: Body, state: dict[str, Any]) -> None:
    assert_same_training(body, **state)


def test_a_counter_under_a_checkpoint_counts_once_in_a_step() -> None:
    """A plain step counts again where backward runs the part again; without checkpoints it counts once, too."""

    def body(net: Any, x: Tensor) -> Tensor:
        def inner(a: Tensor) -> Tensor:
            net.count.add_(1)
            return a.sin()

        y: Tensor = checkpoint(inner, x, use_reentrant=False)
        return y

    plain, aligned = Net(body), tlfx.align(Net(body))
    plain(pictures()).sum().backward()
    aligned(pictures(), target(3))[0].sum().backward()
    counts = [dict(model.named_buffers())["count"].item() for model in (plain, aligned)]
    assert counts == [2, 1]
