"""Models that choose their forward when they are built, and calls with other parameters than the model's own."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plans, slow_except
from torch import Tensor, nn
from torch.func import functional_call

import tlfx

CLASSES = 4
STEPS = 3


class Net(nn.Module):
    """Two forwards, of which a subclass chooses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x))).mean((2, 3)))

    def forward_max(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).amax((2, 3))) * scale)


class Chooses(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forward = self.forward_max  # type: ignore[method-assign]


class ChoosesWithoutOne(nn.Module):
    """The class has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.forward = self.forward_cls

    def forward_cls(self, x: Tensor) -> Tensor:
        return self.net.forward_max(x, 0.5)


class Partial(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(self.forward_max, scale=2.0)  # type: ignore[method-assign]


def doubled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs) * 2

    return wrapped


class Decorated(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forward = doubled(self.forward)  # type: ignore[method-assign]


class DecoratedTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forward = doubled(torch.no_grad()(doubled(self.forward_max)))  # type: ignore[method-assign]


class Closure(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda x: self.forward_max(x, 3.0)  # type: ignore[method-assign]


class DecoratedInTheClass(Net):
    @doubled
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def patched() -> nn.Module:
    model = Net()
    model.forward = model.forward  # type: ignore[method-assign]
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "chooses": Chooses,
    "chooses without one": ChoosesWithoutOne,
    "partial": Partial,
    "decorated": Decorated,
    "decorated in the class": DecoratedInTheClass,
    "closure": Closure,
    "patched": patched,
}


def mixed_pair(seed: int = 0) -> tuple[Tensor, tlfx.MixedTarget]:
    torch.manual_seed(seed)
    mask = torch.ones(1, 1, 4, 4)
    mask[..., :2] = 0
    first, second = torch.tensor([0, 1]), torch.tensor([1, 2])
    return torch.rand(2, 3, 4, 4), tlfx.MixedTarget(first=first, second=second, mask=mask, num_classes=CLASSES)


def assert_same_training(aligned: nn.Module, plain: nn.Module) -> None:
    """Logits, parameters and buffers are the same bits in each step, the plain model given the same targets."""
    optimisers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (aligned, plain)]
    for step in range(STEPS):
        images, target = mixed_pair(step)
        torch.manual_seed(step)
        output, soft = aligned(images, target)
        torch.manual_seed(step)
        expected = plain(images)
        assert torch.equal(output, expected)
        for optimiser, logits in zip(optimisers, (output, expected), strict=True):
            optimiser.zero_grad()
            F.cross_entropy(logits, soft).backward()
            optimiser.step()
        state = plain.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in aligned.state_dict().items())
        torch.testing.assert_close(soft[0], torch.tensor([0.5, 0.5, 0.0, 0.0]), atol=0.26, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_three_steps(name: str) -> None:
    aligned = tlfx.align(MODELS[name]())
    assert isinstance(aligned, tlfx.Aligned)
    assert_same_training(aligned, MODELS[name]())
    images, _ = mixed_pair(5)
    labels = torch.tensor([0, 3])
    assert torch.equal(aligned(images, target=labels)[1], F.one_hot(labels, CLASSES).float())


def test_without_gradients() -> None:
    aligned, plain = tlfx.align(DecoratedTwice()), DecoratedTwice()
    images, target = mixed_pair()
    torch.manual_seed(0)
    output, soft = aligned(images, target)
    torch.manual_seed(0)
    assert torch.equal(output, plain(images))
    assert not output.requires_grad
    assert torch.equal(soft.sum(1), torch.ones(2))


@pytest.mark.parametrize("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", slow_except(("partial",), ("chooses", "chooses without one", "partial")))
def test_copies_run_their_own_parameters(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    model = tlfx.align(MODELS[name]())
    model(*mixed_pair())
    copy = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    plain = MODELS[name]().eval()
    images, target = mixed_pair()
    copy.load_state_dict(plain.state_dict())
    assert torch.equal(copy.eval()(images, target)[0], plain(images))


def test_alignment_taken_away() -> None:
    model = Chooses()
    before = dict(vars(model))
    tlfx.align(model)(*mixed_pair())
    tlfx.align(model, policy=tlfx.Policy(residual="norm"))
    assert vars(tlfx.unalign(model)) == before
    assert type(model) is Chooses


# functional_call


def parameters_like(model: nn.Module) -> dict[str, Tensor]:
    return {name: (value.detach() * 2).requires_grad_() for name, value in model.named_parameters()}


@pytest.mark.parametrize("captured", [False, True], ids=["before the first capture", "later"])
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "computed"])
def test_functional_call(captured: bool, leaves: bool) -> None:
    aligned, plain = tlfx.align(Net()), Net()
    images, target = mixed_pair()
    if captured:
        tlfx.aligned_code(aligned, example=images)
    results = []
    for model, arguments in ((aligned, (images, target)), (plain, (images,))):
        given = parameters_like(plain)
        used = given if leaves else {name: value.sin() for name, value in given.items()}
        torch.manual_seed(0)
        output = functional_call(model, used, arguments)
        logits = output[0] if model is aligned else output
        results.append([logits, *torch.autograd.grad(logits.square().sum(), list(given.values()))])
    assert all(map(torch.equal, *results))
    assert torch.equal(aligned.norm.running_mean, plain.norm.running_mean)  # type: ignore[arg-type]
    torch.manual_seed(0)
    output, _ = aligned(images, target)
    torch.manual_seed(0)
    assert torch.equal(output, plain(images))
    assert plans(aligned) == 1


@pytest.mark.parametrize("captured", [False, True], ids=["before the first capture", "later"])
def test_gradients_by_torch_func(captured: bool) -> None:
    aligned, plain = tlfx.align(Net()).eval(), Net().eval()
    images, target = mixed_pair()
    if captured:
        aligned(images, target)
    given = {name: value.detach() for name, value in parameters_like(plain).items()}
    computed = torch.func.grad(lambda p: functional_call(aligned, p, (images, target))[0].square().sum())(given)
    expected = torch.func.grad(lambda p: functional_call(plain, p, (images,)).square().sum())(given)
    assert all(torch.equal(computed[name], expected[name]) for name in expected)
    assert torch.equal(aligned(images, target)[0], plain(images))
