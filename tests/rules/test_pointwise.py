"""Element-wise operators: Y ← Y, and averages where two values with content meet (eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, groups, label_rows, several, tokens, unchanged
from tlfx_rules.pointwise import ACTIVATIONS  # type: ignore[import-not-found]
from torch import Tensor, nn

from tlfx import Operation, runtime
from tlfx.propagate.values import Role
from tlfx.rules.registry import REGISTRY

aten = torch.ops.aten
SIZE = (4, 4, 6)
SETTINGS: dict[Any, tuple[Any, ...]] = {
    aten.prelu: (torch.full((4,), 0.1),),
    aten.rrelu_with_noise: (torch.ones(1, *SIZE),),
    aten.threshold: (0.1, 0.2),
    aten.clamp: (0.2, 0.7),
    aten.clip: (0.2, 0.7),
    aten.clamp_min: (0.2,),
    aten.clamp_max: (0.7,),
    aten.heaviside: (torch.zeros(()),),
    aten.logit: (1e-3,),
    aten.renorm: (2, 1, 1.0),
    aten.isin: (torch.tensor([0.5]),),
    aten.bucketize: (torch.tensor([0.3, 0.6]),),
    aten.mvlgamma: (1,),
}
"""Arguments of activations that need any."""


def activated(operator: Any, x: Tensor) -> Tensor:
    """An activation with its settings."""
    logical = operator in (aten.logical_not, aten.bitwise_not)
    settings = SETTINGS.get(operator, ())
    if operator is aten.rrelu_with_noise:
        settings = (torch.ones_like,)
    start = x.sigmoid().round().bool() if logical else x.sigmoid()
    return operator(start, *(s(x) if callable(s) else s for s in settings))


@pytest.mark.parametrize("operators", groups(list(ACTIVATIONS)))
def test_activations(operators: Sequence[Any]) -> None:
    """Every activation leaves each label where it is."""
    operations = {str(operator).removeprefix("aten."): Operation.POINTWISE for operator in operators}
    check(lambda x: [activated(a, x) for a in operators], lambda y, x: [y] * len(operators), SIZE, operations)


@pytest.mark.parametrize("operator", [a for a in ACTIVATIONS if hasattr(aten, f"{a.__name__}_")], ids=str)
def test_in_place_activation_has_the_same_rule(operator: Any) -> None:
    in_place = getattr(aten, f"{operator.__name__}_")
    for name in in_place.overloads():
        in_place_rule = REGISTRY.find(getattr(in_place, name))
        assert in_place_rule is not None
        assert in_place_rule.name == str(operator)


def test_in_place_activations_follow_each_other() -> None:
    check(lambda x: F.relu_(F.silu(x.clone(), inplace=True).mul_(2).add_(1)).clamp_(0, 1).sqrt_(), unchanged, SIZE)


# sums of two values: residual connections (eq. 11)


def test_a_branch_of_equal_labels_needs_no_arithmetic() -> None:
    probe = check(
        lambda x, mlp: tokens(x) + mlp(tokens(x)),
        lambda y, x: tokens(y),
        SIZE,
        {"add": Operation.RESIDUAL},
        mlp=nn.Linear(4, 4),
    )
    assert not probe.calls(runtime.average)


RESIDUALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "add_scaled": lambda a, b: torch.add(a, b, alpha=0.5),
    "sub": lambda a, b: a - b,
    "add_": lambda a, b: a.clone().add_(b),
    "sub_": lambda a, b: a.clone().sub_(b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp_by_gate": lambda a, b: torch.lerp(a, b, torch.rand(1, 4, 1, 1)),
    "rsub": torch.rsub,
}
EITHER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda a, b: a * b,
    "mul_": lambda a, b: a.clone().mul_(b),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max": torch.max,
    "fmax": torch.fmax,
    "logaddexp": torch.logaddexp,
    "greater": lambda a, b: (a > b).float(),
    "times_a_decision": lambda a, b: a * (b > 0),
    "hypot": torch.hypot,
    "where_by_chance": lambda a, b: torch.where(torch.rand(1, 4, 1, 1) > 0.5, a, b),
    "where_by_content": lambda a, b: torch.where(a > b, a, b),
}


OFTEN = ("add", "sub_", "lerp_by_gate", "rsub", "mul_", "max", "greater", "where_by_chance", "where_by_content")
"""The others are tested by ``make slow``."""


@pytest.mark.parametrize("name", slow_except(OFTEN, RESIDUALS | EITHER))
def test_differing_labels_are_averaged(name: str) -> None:
    function = (RESIDUALS | EITHER)[name]
    probe = check(lambda x: function(x, x.flip(3).tanh()), lambda y, x: (y + y.flip(3)) / 2, SIZE)
    expected = Operation.RESIDUAL if name in RESIDUALS else Operation.POINTWISE
    used = set(probe.propagation.operations.values()) & {Operation.RESIDUAL, Operation.POINTWISE}
    assert expected in used


@pytest.mark.parametrize("name", slow_except(OFTEN, RESIDUALS | EITHER))
def test_equal_labels_stay(name: str) -> None:
    function = (RESIDUALS | EITHER)[name]
    probe = check(lambda x: function(x, x.tanh()), unchanged, SIZE)
    assert not probe.calls(runtime.average)


@several(10)
@given(st.permutations(range(4)), st.integers(1, 3), st.integers(1, 5))
def test_residual_in_any_layout(order: list[int], down: int, across: int) -> None:
    """The average is taken element by element, wherever the batch lies."""

    def function(x: Tensor) -> Tensor:
        return x.permute(order) + x.roll((down, across), (2, 3)).permute(order)

    check(function, lambda y, x: function(y) / 2, SIZE)


def test_residual_of_windows() -> None:
    """Batch merged with windows: one average for each pair of rows."""

    def cut(x: Tensor) -> Tensor:
        return x.view(-1, 4, 2, 2, 6).transpose(1, 2).reshape(-1, 4, 12)

    check(lambda x: cut(x) + cut(x.flip(2)), lambda y, x: (cut(y) + cut(y.flip(2))) / 2, SIZE)


def test_dense_connections_average_pair_by_pair() -> None:
    check(lambda x: x + x.flip(2).tanh() + x.flip(3).tanh(), lambda y, x: ((y + y.flip(2)) / 2 + y.flip(3)) / 2, SIZE)


def test_sums_of_parts_of_one_value_are_contractions() -> None:
    """A value and shifts of it, each times a number or a parameter: Y ← Norm(|w|)·Y, as by a convolution."""
    check(lambda x: x + x.flip(2) + x.flip(3), lambda y, x: (y + y.flip(2) + y.flip(3)) / 3, SIZE)
    operations = {"add": Operation.SPATIAL_MIX}
    check(lambda x: torch.add(x, x.flip(3), alpha=-0.5), lambda y, x: (y + y.flip(3) / 2) / 1.5, SIZE, operations)
    check(lambda x: torch.lerp(x, x.flip(3), 0.25), lambda y, x: y * 0.75 + y.flip(3) * 0.25, SIZE)
    blur = [0.25, 0.5, 0.25]
    check(
        lambda x: sum((w * x.roll(i - 1, 2) for i, w in enumerate(blur)), torch.zeros(())),
        lambda y, x: sum(w * y.roll(i - 1, 2) for i, w in enumerate(blur)),
        SIZE,
        operations,
    )
    weight = nn.Parameter(torch.tensor([3.0, -1.0]))
    check(
        lambda x, weight: weight[0] * x + weight[1] * x.flip(2), lambda y, x: (3 * y + y.flip(2)) / 4, SIZE,
        operations, weight=weight,
    )  # fmt: skip


def test_sum_with_a_parameter_is_pointwise() -> None:
    """Position embedding, on either side."""
    place = nn.Parameter(torch.randn(1, 4, 4, 6))
    check(lambda x, place: x + place, unchanged, SIZE, {"add": Operation.POINTWISE}, place=place)
    check(lambda x, place: place - x, unchanged, SIZE, {"sub": Operation.POINTWISE}, place=place)
    check(lambda x: 1 - x, unchanged, SIZE, {"rsub": Operation.POINTWISE})


def test_sum_with_a_statistic_of_channels() -> None:
    """x − mean over channels: labels stay; of another place, it brings the label of that place along."""
    for sign, name in ((torch.add, "add"), (torch.sub, "sub")):
        check(lambda x, sign=sign: sign(x, x.mean(1, keepdim=True)), unchanged, SIZE)
        check(
            lambda x, sign=sign: sign(x, x.mean(1, keepdim=True).flip(3)),
            lambda y, x: (y + y.flip(3)) / 2,
            SIZE,
            {name: Operation.RESIDUAL},
        )


def test_sum_with_a_statistic_of_tokens_is_residual() -> None:
    """A context vector added to every token (global context) brings its label with it."""
    check(
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda y, x: (y + y.mean((2, 3), keepdim=True)) / 2,
        SIZE,
        {"add": Operation.RESIDUAL},
    )


def test_what_has_no_content_takes_the_label_of_what_has() -> None:
    """Two paddings overlap: content beside nothing keeps its label, both together are averaged."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        one, other = F.pad(y, (0, 2), value=torch.nan), F.pad(y, (2, 0), value=torch.nan)
        both = (one + other) / 2
        return torch.where(one.isnan(), other, torch.where(other.isnan(), one, both))

    check(lambda x: F.pad(x, (0, 2)) + F.pad(x, (2, 0)), twin, SIZE)


# products and quotients


def gated(x: Tensor, squeeze: nn.Module) -> Tensor:
    return x * squeeze(x.mean((2, 3))).sigmoid().view(x.shape[0], 4, 1, 1)


FACTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "channel_gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "spatial_gate": lambda x: x.mean(1, keepdim=True).flip(3).sigmoid() * x,
    "row_gate": lambda x: x * x.mean(3, keepdim=True),
    "number": lambda x: 2 * x,
    "sample_gate": lambda x: x * x.mean((1, 2, 3), keepdim=True),
    "response_normalisation": lambda x: (
        x * x.norm(dim=(2, 3), keepdim=True) / x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True)
    ),
    "fewer_axes": lambda x: x * x.new_ones(x.shape[3]),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_broadcast_factor_is_pointwise(name: str) -> None:
    check(FACTORS[name], unchanged, SIZE, {"mul": Operation.POINTWISE})


ACTIVATION_MODULES = [nn.ELU(), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.LeakyReLU()]
ACTIVATION_MODULES += [nn.LogSigmoid(), nn.PReLU(4), nn.ReLU(), nn.ReLU6(), nn.RReLU(), nn.SELU(), nn.CELU(), nn.GELU()]
ACTIVATION_MODULES += [
    nn.GELU("tanh"),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(),
    nn.Softshrink(),
    nn.Softsign(),
]
ACTIVATION_MODULES += [nn.Tanh(), nn.Tanhshrink(), nn.Threshold(0.1, 20), nn.Softmax(1), nn.Softmax2d(), nn.Softmin(1)]
ACTIVATION_MODULES += [nn.LogSoftmax(1), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()]


@pytest.mark.parametrize("modules", groups(ACTIVATION_MODULES))
def test_activation_modules(modules: Sequence[nn.Module]) -> None:
    check(
        lambda x, layers: [layer(x) for layer in layers],
        lambda y, x: [y] * len(modules),
        SIZE,
        layers=nn.ModuleList(modules),
    )


def test_squeeze_and_excitation_is_pointwise() -> None:
    check(gated, unchanged, SIZE, {"mul": Operation.POINTWISE, "mean": Operation.AGGREGATION}, squeeze=nn.Linear(4, 4))


def test_layer_scale_is_pointwise() -> None:
    check(
        lambda x, gamma: tokens(x) * gamma,
        lambda y, x: tokens(y),
        SIZE,
        {"mul": Operation.POINTWISE},
        gamma=nn.Parameter(torch.ones(4)),
    )


def test_product_of_two_statistics_is_averaged() -> None:
    """Channel times spatial attention: neither is the full value."""
    check(
        lambda x: x.mean((2, 3), keepdim=True) * x.mean(1, keepdim=True),
        lambda y, x: (y.mean((2, 3), keepdim=True) + y) / 2,
        SIZE,
        {"mul": Operation.POINTWISE},
    )


def test_token_gate() -> None:
    """gMLP: one half of the channels is mixed over tokens and gates the other; differing labels are averaged."""
    mixer = nn.Linear(24, 24)

    def function(x: Tensor, mixer: nn.Module) -> Tensor:
        gate, kept = tokens(x).chunk(2, -1)
        return kept * mixer(gate.transpose(1, 2)).transpose(1, 2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = label_rows(y)
        weight = mixer.weight.double().abs()
        mixed = rows @ (weight / weight.sum(1, keepdim=True)).T
        return ((rows + mixed) / 2).unsqueeze(-1).expand(-1, -1, 2)

    check(function, twin, SIZE, {"mul": Operation.POINTWISE, "linear": Operation.SPATIAL_MIX}, mixer=mixer)


QUOTIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "div_rounded": lambda x: torch.div(x, x.flip(3), rounding_mode="floor"),
    "floor_divide": lambda x: x // x.flip(3),
    "remainder": lambda x: x % x.flip(3),
    "fmod": lambda x: torch.fmod(x, x.flip(3)),
    "by_statistic": lambda x: x / x.mean((2, 3), keepdim=True),
    "number_over": lambda x: 2 / x,
    "reciprocal": lambda x: x.reciprocal(),
    "pow": lambda x: x**2,
    "number_to_the_power": lambda x: 2**x,
    "float_power": lambda x: torch.float_power(x.abs(), 1.5),
}


@pytest.mark.parametrize("name", slow_except(("fmod", "by_statistic", "number_over"), QUOTIENTS))
def test_quotient_keeps_the_label_of_the_numerator(name: str) -> None:
    check(QUOTIENTS[name], unchanged, SIZE)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.flip(3),
        lambda x: x.clone().div_(x.flip(3)),
        lambda x: x.abs() ** x.flip(3),
        lambda x: torch.atan2(x, x.flip(3)),
    ],
)
def test_quotient_by_another_token_is_a_product(function: Callable[[Tensor], Tensor]) -> None:
    check(function, lambda y, x: (y + y.flip(3)) / 2, SIZE)


def test_addcmul_and_addcdiv() -> None:
    """x + a·b and x + a/b."""
    check(
        lambda x: torch.addcmul(x, x.flip(2).tanh(), x.flip(3)),
        lambda y, x: (y + (y.flip(2) + y.flip(3)) / 2) / 2,
        SIZE,
        {"addcmul": Operation.RESIDUAL},
    )
    check(
        lambda x: torch.addcdiv(x, x.flip(2).tanh(), x.flip(3)),
        lambda y, x: (y + (y.flip(2) + y.flip(3)) / 2) / 2,
        SIZE,
    )
    parts = {"a": torch.randn(4, 1, 1), "b": torch.randn(4, 1, 1)}
    check(lambda x, a, b: torch.addcmul(a, x, b), unchanged, SIZE, {"addcmul": Operation.POINTWISE}, **parts)
    check(lambda x, a, b: torch.addcmul(x, a, b), unchanged, SIZE, {"addcmul": Operation.POINTWISE}, **parts)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_glu(axis: int) -> None:
    """Halves of the channels have one label; halves of the tokens are averaged."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        one, other = y.chunk(2, axis)
        return (one + other) / 2

    check(lambda x: F.glu(x, axis), twin, SIZE, {"glu": Operation.POINTWISE})


# choices


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "where_number": lambda x: torch.where(x > 0, x, 0.0),
    "where_other_number": lambda x: torch.where(x > 0, -1.0, x),
    "where_constant": lambda x: torch.where(x.flip(3) > 0, x, torch.ones(1, 4, 1, 1)),
    "masked_fill": lambda x: x.masked_fill(x.flip(3) < 0, -1.0),
    "masked_fill_": lambda x: x.clone().masked_fill_(torch.rand(x.shape) < 0.3, 0.0),
    "times_decisions": lambda x: x * ((x > 0) & ~(x >= 1) | (x != 2)),
    "decisions": lambda x: ((x > 0) ^ (x < 1)).logical_and(x == x).float(),
    "between_constants": lambda x: torch.where(x > 0, torch.ones(4, 4, 6), torch.zeros(4, 4, 6)),
    "between_numbers": lambda x: torch.where(x > 0, 1.0, -1.0),
    "clamp_by_content": lambda x: torch.clamp(x, x.flip(3), None),
}


def test_zeros_where_another_token_decides_are_a_product() -> None:
    """As of a value times another token's: x·(y > 0)."""
    for function in (
        lambda x: torch.where(x.flip(3) > 0, x, torch.zeros(1, 4, 1, 1)),
        lambda x: x.masked_fill(x.flip(3) <= 0, 0.0),
        lambda x: x * (x.flip(3) > 0),
    ):
        check(function, lambda y, x: (y + y.flip(3)) / 2, SIZE)


@pytest.mark.parametrize("name", CHOICES)
def test_choice_beside_numbers_keeps_labels(name: str) -> None:
    check(CHOICES[name], unchanged, SIZE)


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_binarised_activations_keep_their_label(name: str) -> None:
    """An element-wise function of content is content (spiking and binary networks)."""
    check(lambda x: getattr(torch, name)(x, 0.0).float(), unchanged, SIZE, {name: Operation.POINTWISE})


def test_masked_image_modelling() -> None:
    """Tokens replaced by a mask token at random keep the label of their place."""
    token = nn.Parameter(torch.randn(1, 1, 4))

    def function(x: Tensor, token: Tensor) -> Tensor:
        chosen = (torch.rand(x.shape[0], 24, 1) < 0.5).float()
        return tokens(x) * (1 - chosen) + token * chosen

    check(function, lambda y, x: tokens(y), SIZE, token=token)


def test_decisions_about_weights_are_weights() -> None:
    """A score above its mean: depends on the image, has no label."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = tokens(x) @ tokens(x).transpose(1, 2)
        return x, scores > scores.mean(-1, keepdim=True)

    assert Probe(function, SIZE).roles == [Role.CONTENT, Role.WEIGHT]
