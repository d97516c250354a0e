"""``mix_by``: labels mixed by weights that a rule computes, equal to Norm(|W|)·Y in every layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rule_harness import Probe, check, label_rows, normalised, random_mask, tokens
from torch import Tensor, nn

from tlfx import Operation, RuleError, align, use_rules
from tlfx.analysis.invariants import rectangles, target
from tlfx.propagate.verbs import OpContext
from tlfx.testing import check_rule

TOKENS = 24


class Mixer(nn.Module):
    """Tokens (batch, tokens, channels) mixed by learned weights, or by such that its input decides."""

    def __init__(self, out: int = TOKENS, given: int = TOKENS, by_data: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, given, generator=torch.Generator().manual_seed(0)))
        self.by_data = by_data

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) @ x

    def weights(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((1, 2), keepdim=True) + x @ x.mT if self.by_data else self.weight[None]


def weights(module: Any, x: Tensor) -> Tensor:
    return module.weights(x)


def rule(op: OpContext, module: Any, x: Any) -> Any:
    return op.mix_by(weights, x, module, x)


@pytest.mark.parametrize("by_data", [False, True], ids=["learned", "by data"])
def test_tokens(by_data: bool) -> None:
    mixer = Mixer(by_data=by_data)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weight = normalised(mixer.double().weights(tokens(x)))
        mixer.float()
        return (weight @ label_rows(y)[..., None]).expand(-1, -1, 4)

    with use_rules({Mixer: rule}):
        check(lambda x, mixer: mixer(tokens(x)), twin, mixer=mixer, operations={"matmul": Operation.SPATIAL_MIX})


def test_fewer_tokens_come_out() -> None:
    mixer = Mixer(out=5)
    with use_rules({Mixer: rule}):
        check(
            lambda x, mixer: mixer(tokens(x)),
            lambda y, x: (normalised(mixer.weight) @ label_rows(y)[..., None]).expand(-1, -1, 4),
            mixer=mixer,
        )
        check_rule(mixer, lambda: torch.randn(2, TOKENS, 3))


def windows(x: Tensor) -> Tensor:
    """(batch, channels, 4, 6) to (batch · 2 windows, 12 tokens, channels)."""
    return x.unflatten(2, (2, 2)).permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)


@pytest.mark.parametrize("by_data", [False, True], ids=["learned", "by data"])
def test_windows_in_the_batch(by_data: bool) -> None:
    mixer = Mixer(12, 12, by_data)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weight = normalised(mixer.double().weights(windows(x)))
        mixer.float()
        return weight @ windows(y[:, :1].expand(-1, 4, -1, -1))

    with use_rules({Mixer: rule}):
        check(lambda x, mixer: mixer(windows(x)), twin, mixer=mixer)


class Plane(nn.Module):
    """Images (batch, channels, height, width) mixed row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mixer()

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(tokens(x)).mT.unflatten(2, x.shape[2:])


def test_axes_of_an_image() -> None:
    plane = Plane()
    expected = normalised(plane.mixer.weight)
    with use_rules({Plane: lambda op, module, x: op.mix_by(lambda m: m.mixer.weight[None], x, module, axes=(2, 3))}):
        check(
            lambda x, plane: plane(x),
            lambda y, x: (label_rows(y) @ expected.T).unflatten(1, (1, 4, 6)).expand(-1, 4, -1, -1),
            plane=plane,
        )


class Negative(nn.Module):
    """Anything of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


@pytest.mark.parametrize(
    ("axes", "function", "words"),
    [
        ((2,), tokens, r"shape \(2, 24, 4\) along its axes \[2\], but labels vary along \[1\] too\n  node:   neg"),
        ((0,), lambda x: tokens(x).transpose(0, 1), "but labels have their batch along 1"),
    ],
)
def test_axes_that_do_not_fit(axes: tuple[int, ...], function: Callable[[Tensor], Tensor], words: str) -> None:
    along = use_rules({Negative: lambda op, module, x: op.mix_by(weights, x, module, x, axes=axes)})
    with along, pytest.raises(RuleError, match=words):
        Probe(lambda x, module: module(function(x)), (4, 4, 6), module=Negative())


def flat(module: Any, x: Tensor) -> Tensor:
    return module.weight


def broken(module: Any, x: Tensor) -> Tensor:
    return module.no_such_weight


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (flat, r"flat, the weights of a rule, have shape \(24, 24\), expected .*: \(3 or 1, 24, 24\)"),
        (broken, "broken, the weights of a rule, failed: AttributeError: 'Mixer' object has no attribute"),
    ],
)
def test_weights_that_do_not_fit(function: Callable[..., Tensor], words: str) -> None:
    with use_rules({Mixer: lambda op, module, x: op.mix_by(function, x, module, x)}):
        probe = Probe(lambda x, mixer: mixer(tokens(x)), (4, 4, 6), mixer=Mixer())
        with pytest.raises(RuleError, match=words):
            probe.shares(random_mask((4, 4, 6), seed=1))


def test_weights_run_outside_autograd_and_autocast() -> None:
    seen = []

    def watching(module: Any, x: Tensor) -> Tensor:
        weight = module.weights(x.float())
        seen.append((torch.is_grad_enabled(), weight.dtype))
        return weight

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mixer, self.head = nn.Conv2d(3, 4, 4, 4), Mixer(16, 16), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mixer(tokens(self.stem(x))).mean(1))

    watched = use_rules({Mixer: lambda op, module, x: op.mix_by(watching, x, module, x)})
    with watched, torch.autocast("cpu", torch.bfloat16):
        logits, soft = align(Net())(torch.rand(2, 3, 16, 16), target(rectangles(2, (16, 16), seed=0)))
    assert seen == [(False, torch.float32)]
    assert logits.dtype == torch.bfloat16
    assert (soft.dtype, soft.requires_grad) == (torch.float32, False)
