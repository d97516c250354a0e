"""Operators of user code that torch.export leaves whole: products, stacks, decisions, cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import slow_except
from rule_harness import Probe, check, check_moves, label_rows, spread, tokens
from torch import Tensor, nn

from tlfx import Operation, ProvenanceError, RuleError
from tlfx.propagate.values import Role
from tlfx.rules.registry import REGISTRY

SIZE = (4, 3, 4)
TOKENS = 12


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tensordot": lambda x, w: torch.tensordot(tokens(x), w, dims=([2], [0])),
    "tensordot_from_the_end": lambda x, w: torch.tensordot(tokens(x), w, dims=1),
    "inner": lambda x, w: torch.inner(tokens(x), w),
    "multi_dot": lambda x, w: torch.linalg.multi_dot((tokens(x).flatten(0, 1), w, w)).unflatten(0, (-1, TOKENS)),
    "inverse": lambda x, w: tokens(x) @ torch.linalg.inv(w),
    "solve": lambda x, w: torch.linalg.solve(w, x.flatten(2)).transpose(1, 2),
}


@pytest.mark.parametrize("name", slow_except(PRODUCTS.keys() - {"tensordot_from_the_end", "inverse"}, PRODUCTS))
def test_products_over_channels(name: str) -> None:
    """Y ← Y."""
    weight = nn.Parameter(torch.randn(4, 4))
    check(PRODUCTS[name], lambda y, x: spread(label_rows(y), 4), SIZE, w=weight)


def test_tensordot_over_tokens_is_spatial_mixing() -> None:
    weight = nn.Parameter(torch.randn(TOKENS, 5))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = label_rows(y) @ (weight.detach().double().abs() / weight.detach().double().abs().sum(0))
        return rows.unsqueeze(1).expand(-1, 4, -1)

    operations = {"tensordot": Operation.SPATIAL_MIX}
    check(lambda x, w: torch.tensordot(x.flatten(2), w, dims=([2], [0])), twin, SIZE, operations, w=weight)


def test_outer() -> None:
    check(
        lambda x, w: torch.outer(x.flatten(), w).view(*x.shape, 5),
        lambda y, x: y.unsqueeze(-1).expand(*y.shape, 5),
        SIZE,
        w=nn.Parameter(torch.randn(5)),
    )


def test_kron() -> None:
    """Nearest upsampling, as it may be written; the constant on either side."""
    ones = nn.Parameter(torch.ones(2, 2))
    check(lambda x, w: torch.kron(x, w), lambda y, x: y.repeat_interleave(2, 2).repeat_interleave(2, 3), SIZE, w=ones)
    check(lambda x, w: torch.kron(w, x), lambda y, x: y.repeat(1, 1, 2, 2), SIZE, w=ones)


def test_cross() -> None:
    for function in (torch.linalg.cross, torch.cross):
        check(lambda x, f=function: f(x[:, :3], x[:, 1:], dim=1), lambda y, x: y[:, :3], SIZE)
    with pytest.raises(ProvenanceError, match="first axis of length 3, which may be that of the batch: pass dim"):
        Probe(lambda x: torch.cross(x[:, :3], x[:, 1:]), SIZE)


def test_a_power_of_a_mixing_weight_is_a_mixing_weight() -> None:
    def weights(x: Tensor) -> Tensor:
        return torch.linalg.matrix_power((tokens(x) @ x.flatten(2)).softmax(-1), 2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return spread((weights(x) @ label_rows(y).unsqueeze(-1))[..., 0], 4)

    check(lambda x: weights(x) @ tokens(x), twin, SIZE, {"matmul": Operation.SPATIAL_MIX})


def test_a_solution_sees_every_row() -> None:
    check(
        lambda x, w: torch.linalg.solve(w, x),
        lambda y, x: y.mean(2, keepdim=True).expand_as(y),
        (3, 4, 4),
        w=nn.Parameter(torch.randn(4, 4)),
    )


def test_bringing_samples_to_length_one_is_pointwise() -> None:
    """Along other axes, norms are those of several samples (test_batch.py)."""
    check(lambda x: x.renorm(2, 0, 1.0), lambda y, x: y, SIZE)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "hstack": lambda x: torch.hstack((x, x.flip(3))),
    "column_stack": lambda x: torch.column_stack((x, x.flip(2))),
    "dstack": lambda x: torch.dstack((x, x.flip(2))),
    "vstack": lambda x: torch.vstack((x.permute(1, 0, 2, 3), x.permute(1, 0, 2, 3).flip(2))),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:, :1])[1],
}


@pytest.mark.parametrize("name", MOVES)
def test_stacks(name: str) -> None:
    check_moves(MOVES[name], SIZE)


def test_stacks_of_too_few_axes() -> None:
    with pytest.raises(RuleError, match="dstack of values of fewer than 3 axes: give them their axes before"):
        Probe(lambda x: torch.dstack((x.mean((2, 3)), x.amax((2, 3)))), SIZE)


def test_elements_by_their_place_in_the_whole_are_refused() -> None:
    with pytest.raises(ProvenanceError, match="moves image content between the samples"):
        Probe(lambda x: torch.take(x, x.flatten(1).argsort(1)), SIZE)


POINTWISE: dict[str, Callable[[Tensor], Any]] = {
    "bucketize": lambda x: x * torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
    "searchsorted": lambda x: x * torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), x),
    "isin": lambda x: torch.isin(x.round(), torch.tensor([0.0, 1.0])),
    "complex": lambda x: torch.complex(x, x.tanh()).abs(),
    "polar": lambda x: torch.polar(x.abs(), x).imag,
    "lgamma": lambda x: torch.lgamma(x.abs() + 1),
    "ndtr": torch.special.ndtr,
    "nextafter": lambda x: torch.nextafter(x, torch.ones(())),
    "shift": lambda x: (x.long() << 1) * x,
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(name: str) -> None:
    check(POINTWISE[name], lambda y, x: y, SIZE)


def test_complex_of_different_labels_is_their_average() -> None:
    check(lambda x: torch.complex(x, x.flip(3)).abs(), lambda y, x: (y + y.flip(3)) / 2, SIZE)


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "linalg_norm": (lambda x: torch.linalg.norm(x, dim=3), (3,)),
    "linalg_norm_of_matrices": (lambda x: torch.linalg.norm(x, "fro", dim=(2, 3)), (2, 3)),
    "matrix_norm": (torch.linalg.matrix_norm, (2, 3)),
    "spectral_norm": (lambda x: torch.linalg.matrix_norm(x, 2), (2, 3)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    function, axes = NORMS[name]
    check(function, lambda y, x: y.mean(axes), SIZE)


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_step_of_a_recurrence(kind: type[nn.Module]) -> None:
    """The average of the input and of the state."""

    def function(x: Tensor, cell: nn.Module) -> Tensor:
        state = x.amax((2, 3))
        out = cell(tokens(x)[:, 0], (state, state) if kind is nn.LSTMCell else state)
        return out[0] if kind is nn.LSTMCell else out

    def twin(y: Tensor, x: Tensor) -> Tensor:
        row, state = label_rows(y)[:, 0], y.mean((1, 2, 3))
        share = (row + state) / 2
        return spread((row + 2 * state) / 3 if kind is nn.LSTMCell else share, 5)

    def shaped(x: Tensor, cell: nn.Module, lift: nn.Module) -> Tensor:
        return function(lift(x), cell)

    check(shaped, twin, SIZE, cell=kind(5, 5), lift=nn.Conv2d(4, 5, 1))


def test_counts_have_no_label() -> None:
    probe = Probe(lambda x: (x, torch.histc(x, 4), torch.dist(x, x.tanh())), SIZE)
    assert probe.roles == [Role.CONTENT, Role.WEIGHT, Role.WEIGHT]


@pytest.mark.parametrize("contexts", [False, True])
def test_rules_see_products_that_wait_for_a_query_as_content_unless_they_pass_them_on(contexts: bool) -> None:
    seen: list[Role] = []

    def rule(op: Any, x: Any) -> Any:
        seen.append(x.role)
        return op.pointwise(x)

    with REGISTRY.restored():
        REGISTRY.add(torch.ops.aten.relu, rule, override=True, contexts=contexts)
        Probe(lambda x: (tokens(x).mT @ tokens(x)).relu(), SIZE)
    assert set(seen) == {Role.CONTEXT if contexts else Role.CONTENT}
