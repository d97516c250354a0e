"""Random programs of several steps, each written in two ways: equal labels, the plain model's outputs, and support."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from equivalents.spelling import TOKENS, Body, Group, label_matrices, tokens
from equivalents.steps import PARTS, STEPS, Step
from equivalents.test_equivalents import compare
from tlfx import CaptureError

Draw = tuple[Step, int, int]
"""A step, and its spelling in each of two programs."""
STEPS_OF_TWO_PROGRAMS = st.lists(
    st.sampled_from(STEPS).flatmap(
        lambda step: st.tuples(st.just(step), *[st.integers(0, len(step.spellings) - 1)] * 2)
    ),
    min_size=3,
    max_size=7,
)


def program(steps: list[Draw], which: int) -> Body:
    """The steps in one of their two spellings, as one function."""
    spellings = [draw[0].spellings[draw[1 + which]] for draw in steps]
    return lambda s, z: functools.reduce(lambda y, spelling: spelling(s, y), spellings, tokens(z))


def check(steps: list[Draw], batch: int, shared: bool) -> None:
    note("\n".join(f"{step.name}: spelling {one} against {other}" for step, one, other in steps))
    group = Group("random", PARTS, {"one": program(steps, 0), "other": program(steps, 1)})
    try:
        matrices = label_matrices(group, batch=batch, shared=shared)
    except CaptureError as error:  # of a program that torch.export specialises to its batch size
        if batch == 1 and "a batch of 1 cannot be told from other axes of length 1" in str(error):
            return
        raise
    compare(matrices)
    check_support(steps, group, matrices["one"][0])


def check_support(steps: list[Draw], group: Group, matrix: Tensor) -> None:
    """Labels come only from tokens that a token depends on, and from all of them unless through gates."""
    depends = dependence(group)
    assert not (matrix[~depends] > 1e-5).any()
    if all(step.labels_all for step, *_ in steps):
        assert (matrix[depends] > 0).all()


def dependence(group: Group) -> Tensor:
    """Whether each row of the output depends on each token of the image, (rows, TOKENS), by autograd."""
    plain: Any = group.plain("one").double()
    images = torch.randn(4, 3, *(2 * [int(TOKENS**0.5)]), dtype=torch.float64, requires_grad=True)
    (output,) = plain(images)
    rows = (output * torch.randn_like(output)).sum((0, 2))
    gradients = [torch.autograd.grad(row, images, retain_graph=True)[0].abs().sum((0, 1)).flatten() for row in rows]
    return torch.stack(gradients) > 0


arguments = {"steps": STEPS_OF_TWO_PROGRAMS, "batch": st.integers(1, 3), "shared": st.booleans()}
relaxed = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed(max_examples=40, derandomize=True)  # the same at every run; make slow draws others
@given(**arguments)
def test_random_programs(steps: list[Draw], batch: int, shared: bool) -> None:
    check(steps, batch, shared)


@pytest.mark.slow
@relaxed(max_examples=500)
@given(**arguments)
def test_many_random_programs(steps: list[Draw], batch: int, shared: bool) -> None:
    check(steps, batch, shared)
