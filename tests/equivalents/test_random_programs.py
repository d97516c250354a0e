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


def check(programs: list[list[Draw]], batch: int, shared: bool) -> None:
    """Check programs, which are captured together: that takes a fraction of the time."""
    spellings = {(i, which): program(steps, which) for i, steps in enumerate(programs) for which in (0, 1)}
    group = Group("random", PARTS, {f"{i} {which}": body for (i, which), body in spellings.items()})
    for i, steps in enumerate(programs):
        note("\n".join(f"{i}: {step.name}: spelling {one} against {other}" for step, one, other in steps))
    try:
        matrices = label_matrices(group, batch=batch, shared=shared)
    except CaptureError as error:  # of a program that torch.export specialises to its batch size
        if batch > 1 or "a batch of 1 cannot be told from other axes of length 1" not in str(error):
            raise
        for steps in programs if len(programs) > 1 else []:
            check([steps], batch, shared)
        return
    for i, steps in enumerate(programs):
        compare({f"{i} {which}": matrices[f"{i} {which}"] for which in (0, 1)})
        check_support(steps, dependence(group, f"{i} 0"), matrices[f"{i} 0"][0])


def check_support(steps: list[Draw], depends: Tensor, matrix: Tensor) -> None:
    """Labels come only from tokens that a token depends on, and from all of them unless through gates."""
    assert not (matrix[~depends] > 1e-5).any()
    if all(step.labels_all for step, *_ in steps):
        assert (matrix[depends] > 0).all()


def dependence(group: Group, name: str) -> Tensor:
    """Whether each row of the output depends on each token of the image, (rows, TOKENS), by autograd."""
    plain: Any = group.plain(name).double()
    images = torch.randn(4, 3, *(2 * [int(TOKENS**0.5)]), dtype=torch.float64, requires_grad=True)
    (output,) = plain(images)
    rows = (output * torch.randn_like(output)).sum((0, 2))
    gradients = [torch.autograd.grad(row, images, retain_graph=True)[0].abs().sum((0, 1)).flatten() for row in rows]
    return torch.stack(gradients) > 0


TOGETHER = 4
"""Programs that are drawn and captured together."""
several = st.lists(STEPS_OF_TWO_PROGRAMS, min_size=TOGETHER, max_size=TOGETHER)
arguments = {"programs": several, "batch": st.integers(1, 3), "shared": st.booleans()}
relaxed = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed(max_examples=40 // TOGETHER, derandomize=True)  # the same at every run; make slow draws others
@given(**arguments)
def test_random_programs(programs: list[list[Draw]], batch: int, shared: bool) -> None:
    check(programs, batch, shared)


@pytest.mark.slow
@relaxed(max_examples=500 // TOGETHER)
@given(**arguments)
def test_many_random_programs(programs: list[list[Draw]], batch: int, shared: bool) -> None:
    check(programs, batch, shared)
