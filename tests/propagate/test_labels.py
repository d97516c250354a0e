"""Labels: rows numbered across a table, and rows that nothing reads left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tlfx import runtime
from tlfx.propagate.labels import LabelTable, LabelTensor, Operand
from tlfx.propagate.outputs import OutputLabel
from tlfx.rewrite.writer import read_labels
from tlfx.runtime import BatchAxis


def pixels(table: LabelTable, count: int) -> Tensor:
    """The rows of a first label."""
    return table.add(runtime.pixels, "mask", None, shape=(count,))


def evaluate(label: LabelTensor, source: Tensor) -> Tensor:
    """What a label computes from one label before it, (batch, rows, channels)."""
    args = [source[:, a.ids] if isinstance(a, Operand) else a for a in label.args]
    return label.function(*args, **label.kwargs).flatten(1, -2)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5))
def test_rows_are_numbered_across_the_table(shapes: list[list[int]]) -> None:
    table = LabelTable()
    ids = [table.add(runtime.finalize, shape=tuple(shape)) for shape in shapes]
    assert torch.equal(torch.cat([i.flatten() for i in ids]), torch.arange(table.size))
    assert [tuple(i.shape) for i in ids] == [tuple(shape) for shape in shapes]
    for place, rows in enumerate(ids):
        assert set(table.owners(rows).flatten().tolist()) == {place}
        assert table.tensors[place].size == rows.numel()


@given(st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
def test_elementwise_labels_compute_what_is_read(needed: list[bool]) -> None:
    """Each restricted row equals the row of the whole label."""
    source = torch.rand(2, 8, 1)
    label = LabelTensor(
        8,
        (2, 3),
        runtime.average,
        (Operand(torch.arange(6).view(2, 3)), Operand(torch.arange(2, 8).view(2, 3))),
        elementwise=True,
    )
    check_restricted(label, source, torch.tensor(needed), exact=True)


@given(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), st.booleans())
def test_counts_go_with_their_rows(needed: list[bool], weighted: bool) -> None:
    table = torch.tensor([[0, 1], [2, 3], [4, 5]])
    counts = (torch.tensor([[1.0, 3.0], [2.0, 2.0], [5.0, 0.0]]),) if weighted else ()
    label = LabelTensor(8, (3,), runtime.uniform, (Operand(table), *counts), elementwise=True)
    check_restricted(label, torch.rand(2, 6, 1), torch.tensor(needed), exact=True)


@given(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), st.sampled_from([0, 1]))
def test_queries_compute_what_is_read_and_little_more(needed: list[bool], axis: int) -> None:
    """A mixing label is restricted by whole queries: those of which any row is read."""
    weight = torch.rand(2, 2, 3, 4)
    rows = Operand(torch.arange(8).view(2, 4) if axis else torch.arange(12).view(3, 4))
    equation = runtime.Equation(*(("abhqm", "hm", "hq") if axis else ("abqhm", "hm", "qh")))
    label = LabelTensor(12, (2, 3), runtime.mix, (weight, rows, equation), {"where": BatchAxis(0)}, query_axis=axis)
    read = torch.tensor(needed)
    queries = read.view(2, 3).any(1 - axis)
    restricted = check_restricted(label, torch.rand(2, 12, 1), read, exact=False)
    assert int(restricted.position().max()) + 1 == int(queries.sum()) * label.shape[1 - axis]


def check_restricted(label: LabelTensor, source: Tensor, needed: Tensor, exact: bool) -> LabelTensor:
    whole, restricted = evaluate(label, source), label.restricted(needed)
    place = restricted.position()
    assert bool((place[needed] >= 0).all())
    torch.testing.assert_close(evaluate(restricted, source)[:, place[needed]], whole[:, needed])
    if exact:
        assert torch.equal(place >= 0, needed)
    return restricted


def test_a_label_that_is_read_in_full_stays_as_it_is() -> None:
    label = LabelTensor(0, (3,), runtime.finalize, (), elementwise=True)
    assert label.restricted(torch.ones(3, dtype=torch.bool)) is label
    assert torch.equal(label.position(), torch.arange(3))


def test_a_label_that_cannot_be_cut_is_computed_in_full() -> None:
    label = LabelTensor(0, (3,), runtime.scan, ())
    assert label.restricted(torch.tensor([True, False, False])) is label


def output(rows: Tensor) -> OutputLabel:
    return OutputLabel(rows.view(1, 1, -1), BatchAxis(0), class_axis=1, classes=1)


def chain(function: Callable[..., Tensor], *operands: Tensor) -> LabelTable:
    """A table of one label after another, each elementwise in the one before."""
    table = LabelTable()
    rows = pixels(table, 4)
    for _ in range(3):
        rows = table.add(function, Operand(rows), Operand(rows.flip(0)), shape=(4,), elementwise=True)
    return table


def test_only_what_outputs_depend_on_is_read() -> None:
    """One row of the last label needs two of the one before, and those two of the one before that."""
    table = chain(runtime.average)
    live = read_labels(table, [output(torch.tensor([12]))])
    assert [int((live[i].position() >= 0).sum()) for i in (1, 2, 3)] == [2, 2, 1]
    assert live[0].size == 4
    assert live[0].kept is None


def test_labels_that_nothing_reads_are_not_live() -> None:
    table = chain(runtime.average)
    unread = table.add(
        runtime.average, Operand(torch.arange(4)), Operand(torch.arange(4)), shape=(4,), elementwise=True
    )
    assert len(read_labels(table, [output(torch.tensor([0, 3]))])) == 1
    assert 4 not in read_labels(table, [output(torch.tensor([12])), None])
    assert 4 in read_labels(table, [output(unread[:1])])


def test_labels_are_parts_of_those_that_are_computed_from_them() -> None:
    """Through chains of labels, but not through other places of elementwise labels."""
    table = LabelTable()
    first = pixels(table, 4)
    moved = table.add(runtime.weigh, Operand(first), None, shape=(4,), same_places=True)
    pairs = table.add(runtime.average, Operand(moved[:2]), Operand(moved[2:]), shape=(2,), elementwise=True)
    mean = table.add(runtime.uniform, Operand(pairs[:1]), shape=(1,), elementwise=True)
    mixed = table.add(runtime.mix, None, Operand(first), shape=(2,))
    assert table.are_parts(first, first)
    assert table.are_parts(torch.tensor([0, 2]), mean.expand(2))
    assert not table.are_parts(torch.tensor([0, 1]), mean.expand(2))
    assert not table.are_parts(torch.tensor([0, 1, 2]), pairs[[0, 0, 0]])
    assert table.are_parts(first, mixed[[0, 0, 1, 1]])
    assert not table.are_parts(mean, first[:1])
