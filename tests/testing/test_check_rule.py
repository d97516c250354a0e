"""``check_rule``: right rules pass, and each kind of wrong one is caught and told what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import slow_except
from torch import Tensor, nn

from tlfx import CaptureError, InputError, ProvenanceError, UnknownOperatorError, WrongRuleError, use_rules
from tlfx.propagate.labels import Operand
from tlfx.propagate.values import Value
from tlfx.propagate.verbs import OpContext
from tlfx.testing import Content, check_rule

aten = torch.ops.aten


@torch.library.custom_op("tlfx_checked::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    """An operator without a backward."""
    return x.roll(1, 1)


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def tokens() -> Tensor:
    return torch.randn(2, 5, 4)


def sequence() -> Content:
    return Content(torch.randn(2, 4, 5), "bct")


def image() -> Tensor:
    return torch.randn(2, 3, 4, 4)


def largest(x: Tensor) -> Tensor:
    """Tokens by an order that the data decide."""
    order = x.sum(2, keepdim=True).argsort(1).expand_as(x)
    return x.gather(1, order[:, :3])


RIGHT: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "an operator": (aten.roll.default, lambda: (tokens(), [1], [1])),
    "a function": (lambda x: x.roll(1, 1), tokens),
    "a module": (nn.Conv2d(3, 2, 3, padding=1, stride=2), image),
    "tokens along another axis": (nn.Conv1d(4, 4, 3, padding=1), sequence),
    "images": (nn.MaxPool2d(2), image),
    "keyword arguments": (torch.cumsum, lambda: {"input": tokens(), "dim": 1}),
    "weights beside": (nn.functional.linear, lambda: (tokens(), torch.randn(3, 4), torch.randn(3))),
    "several outputs": (lambda x: (x.flip(1), [x.exp()], {"mean": x.mean(1)}), tokens),
    "an output without content": (lambda x: (x, torch.arange(5.0)), tokens),
    "random": (nn.Dropout(0.5), tokens),
    "an order that the data decide": (largest, tokens),
}


@pytest.mark.parametrize("case", slow_except(RIGHT.keys() - {"images", "random"}, RIGHT))
def test_right_rules(case: str) -> None:
    check_rule(*RIGHT[case])


def test_what_labels_may_leave_out() -> None:
    def attention() -> Any:
        return tuple(Content(torch.randn(2, n, 4), "btc") for n in (3, 5, 5))

    attend = nn.functional.scaled_dot_product_attention
    said = (
        r"leaves out token 0\.\n  in the label:      tokens \[8, 9, 10, 11, 12\]\n  output depends on: tokens \[0, 3, "
    )
    with pytest.raises(WrongRuleError, match=said):
        check_rule(attend, attention)
    check_rule(attend, attention, less="queries and keys only choose among values")


def test_an_operator_without_a_backward() -> None:
    with use_rules({turned: lambda op, x: op.remap(x, lambda m: m.roll(1, 1))}):
        check_rule(turned, tokens)
    with use_rules({turned: lambda op, x: op.pointwise(x)}), pytest.raises(WrongRuleError, match="leaves out token 4"):
        check_rule(turned, tokens)
    with pytest.raises(UnknownOperatorError, match=r"tlfx_checked\.turned"):
        check_rule(turned, tokens)


class Decay(nn.Module):
    """Each token sees those before it, by weights that fade."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights() @ x

    def weights(self) -> Tensor:
        places = torch.arange(5)
        return (-self.rate * (places[:, None] - places)).exp().tril()


def test_a_module_with_a_rule() -> None:
    def decay(op: OpContext, module: Any, x: Value) -> Value:
        return op.mix_by(lambda m: m.weights()[None], x, module)

    with use_rules({Decay: decay}):
        check_rule(Decay(), tokens)
    with (
        use_rules({Decay: lambda op, module, x: op.spread(x, [1])}),
        pytest.raises(WrongRuleError, match="counts token 1"),
    ):
        check_rule(Decay(), tokens)


def by_label(function: Callable[[Tensor], Tensor]) -> Callable[..., Value]:
    """A rule with a custom label function."""

    def make(op: OpContext, x: Value) -> Value:
        ids = op.label(function, Operand(x.ids.flatten()), shape=(x.ids.numel(),))
        return op.from_ids(ids.view(x.ids.shape), x.batch_axis)

    return make


def squared(rows: Tensor) -> Tensor:
    return rows**2


def doubled(rows: Tensor) -> Tensor:
    return 2 * rows


def of_other_sample(rows: Tensor) -> Tensor:
    return rows.flip(0)


WRONG: dict[str, tuple[Any, Callable[..., Any], Callable[..., Any], Callable[[], Any], str]] = {
    "point-wise for a shift": (
        aten.roll,
        lambda op, x, *settings: op.pointwise(x),
        lambda x: x.roll(1, 1),
        tokens,
        r"output 0, element \(0, 0, 0\): its label leaves out token 4\.\n"
        r"  in the label:      tokens \[0\]\n"
        r"  output depends on: tokens \[4\]\n"
        r"Fix the rule, or state with less= why labels leave out inputs that the output depends on\.$",
    ),
    "uniform for a local operator": (
        aten.conv1d,
        lambda op, x, *settings: op.spread(x, [2]),
        nn.Conv1d(4, 4, 3, padding=1),
        sequence,
        r"element \(0, 0, 0\): its label counts token 2\.\n"
        r"  in the label:      tokens \[0, 1, 2, 3, 4\]\n"
        r"  output depends on: tokens \[0, 1\]\n"
        r"Fix the rule: the output did not depend on this token for any of the random inputs\.$",
    ),
    "no label for a point-wise operator": (
        aten.exp,
        lambda op, x: op.weight(),
        torch.exp,
        tokens,
        r"leaves out token 0\.\n  in the label:      tokens \[\]\n  output depends on: tokens \[0\]",
    ),
    "no content": (aten.exp, lambda op, x: op.constant(), torch.exp, tokens, "leaves out token 0"),
    "a window that is too small": (
        aten.conv1d,
        lambda op, x, *settings: op.pool(x, aten.avg_pool1d.default, [3], [1], [1], False, False, spatial=1),
        nn.Conv1d(4, 4, 5, padding=2),
        sequence,
        r"leaves out token 2\.\n  in the label:      tokens \[0, 1\]\n  output depends on: tokens \[0, 1, 2\]",
    ),
    "the second of several outputs": (
        aten.split,
        lambda op, x, *settings: [op.remap(x, lambda m: m[:, :2]), op.remap(x, lambda m: m[:, 1:3])],
        lambda x: list(x[:, :4].split(2, 1)),
        tokens,
        "output 1, element .* leaves out token 2",
    ),
    "squares": (
        aten.exp,
        by_label(squared),
        torch.exp,
        tokens,
        "output 0: labels are linear in the mask, but the rule",
    ),
    "more than all": (aten.exp, by_label(doubled), torch.exp, tokens, "labels are convex combinations, but the rule"),
    "another sample": (
        aten.exp,
        by_label(of_other_sample),
        torch.exp,
        tokens,
        "output 0: .*, but the rule violates this",
    ),
}


@pytest.mark.parametrize("case", slow_except(WRONG.keys() - {"uniform for a local operator"}, WRONG))
def test_wrong_rules(case: str) -> None:
    operator, rule, function, make_inputs, words = WRONG[case]
    with use_rules({operator: rule}, override=True), pytest.raises(WrongRuleError, match=words):
        check_rule(function, make_inputs)


def test_an_operator_that_mixes_samples() -> None:
    words = "output 0 depends on other samples of the batch, which labels cannot express"
    staying = use_rules({aten.flip: lambda op, x, dims: op.pointwise(x)}, override=True)
    with staying, pytest.raises(WrongRuleError, match=words):
        check_rule(lambda x: x.flip(0), tokens)


def test_a_rule_that_mixes_samples() -> None:
    flipped = use_rules({aten.exp: lambda op, x: op.remap(x, lambda m: m.flip(0))}, override=True)
    with flipped, pytest.raises(ProvenanceError, match="mixes the samples of a batch"):
        check_rule(torch.exp, tokens)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: torch.randn(3, 5, 4), r"expected inputs with a batch of 2, got \[3\]"),
        (lambda: Content(torch.randn(4, 2), "tc"), r"shape \(4, 2\) with layout 'tc': expected one letter per axis"),
        (lambda: Content(torch.randn(2, 3), "btc"), r"shape \(2, 3\) with layout 'btc'"),
        (lambda: Content(torch.randn(2, 3), "bx"), "b .batch. once, t .tokens. and c .channels."),
        (lambda: torch.rand(2), r"a tensor of shape \(2,\) has no default layout: wrap it in Content"),
        (lambda: torch.ones(2, 3, dtype=torch.int64), "make_inputs returns no floating-point tensor"),
        (lambda: (), "make_inputs returns no floating-point tensor"),
    ],
)
def test_inputs_that_cannot_be_checked(made: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_rule(torch.exp, made)


def test_an_operator_that_fails_by_itself() -> None:
    with pytest.raises(CaptureError, match="fails by itself"):
        check_rule(lambda x: x @ x, tokens)


def test_the_random_state_stays() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_rule(nn.Dropout(0.5), tokens)
    assert torch.equal(torch.get_rng_state(), before)
