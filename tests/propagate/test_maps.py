"""Maps: narrowed where constant, the batch axis found in any layout, split off and merged back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tlfx.errors import ProvenanceError
from tlfx.propagate.maps import NONE, compact, fill_none, find_batch_axis, ids_of_sample, map_of_ids
from tlfx.runtime import BatchAxis

SIZES = st.integers(1, 3)


@st.composite
def integers(draw: st.DrawFn, low: int = 0, high: int = 5) -> Tensor:
    """A tensor of one to four axes, some of them constant."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    held = [n if draw(st.booleans()) else 1 for n in shape]
    values = draw(st.lists(st.integers(low, high), min_size=(n := torch.Size(held).numel()), max_size=n))
    return torch.tensor(values).view(held).expand(shape)


@st.composite
def layouts(draw: st.DrawFn, low: int = 0) -> tuple[Tensor, int, BatchAxis]:
    """Rows of one sample with the axes (outer, inner) in place, a batch size, and where the batch goes."""
    before, after = draw(st.lists(SIZES, max_size=2)), draw(st.lists(SIZES, max_size=2))
    outer, inner = draw(SIZES), draw(SIZES)
    shape = [*before, outer, inner, *after]
    values = draw(st.lists(st.integers(low, 6), min_size=(n := torch.Size(shape).numel()), max_size=n))
    return torch.tensor(values).view(shape), draw(st.integers(2, 4)), BatchAxis(len(before), outer, inner)


@given(integers())
def test_compact_keeps_every_element(full: Tensor) -> None:
    narrow = compact(full)
    assert torch.equal(narrow.expand(full.shape), full)
    assert all(n > 1 for n in narrow.shape) or 1 in narrow.shape


@given(integers())
def test_compact_leaves_no_constant_axis(full: Tensor) -> None:
    narrow = compact(full)
    for axis, size in enumerate(narrow.shape):
        assert size == 1 or bool((narrow != narrow.narrow(axis, 0, 1)).any())
    assert torch.equal(compact(narrow), narrow)


@given(integers())
def test_compact_does_not_depend_on_strides(full: Tensor) -> None:
    assert torch.equal(compact(full), compact(full.contiguous()))


@given(layouts())
def test_a_batch_merged_is_found_and_split_off_again(drawn: tuple[Tensor, int, BatchAxis]) -> None:
    ids, batch, where = drawn
    merged = compact(map_of_ids(ids, batch, where))
    batch_axis = find_batch_axis(merged, batch)
    assert batch_axis == where
    assert torch.equal(ids_of_sample(merged, batch, batch_axis).expand(ids.shape), ids)


@given(layouts(low=-1))
def test_elements_without_content_stay_without(drawn: tuple[Tensor, int, BatchAxis]) -> None:
    """The batch is found as long as every sample shows on its axis."""
    ids, batch, where = drawn
    merged = map_of_ids(ids, batch, where)
    shape = list(ids.shape)
    shape[where.axis + 1 : where.axis + 1] = [batch]
    split = merged.unflatten(where.axis, (where.outer, batch, where.inner)).expand(shape)
    assert torch.equal(split == NONE, (ids == NONE).unsqueeze(where.axis + 1).expand(shape))
    assume(bool((ids != NONE).any()))
    assume(bool((ids != NONE).movedim((where.axis, where.axis + 1), (0, 1)).unsqueeze(2).flatten(2).any(2).all()))
    batch_axis = find_batch_axis(merged, batch)
    assert batch_axis == where
    assert torch.equal(ids_of_sample(merged, batch, batch_axis).expand(ids.shape), ids)


@given(layouts())
def test_every_sample_has_ids_that_no_other_has(drawn: tuple[Tensor, int, BatchAxis]) -> None:
    """Elements are row · batch + sample."""
    ids, batch, where = drawn
    merged = map_of_ids(ids, batch, where)
    split = merged.unflatten(where.axis, (where.outer, batch, where.inner)).movedim(where.axis + 1, 0)
    for sample in range(batch):
        assert torch.equal(split[sample] % batch, torch.full_like(split[sample], sample))
        assert torch.equal((split[sample] // batch).expand(ids.shape), ids)


@pytest.mark.parametrize(
    "content",
    [
        torch.tensor([[0, 1], [1, 0]]),
        torch.tensor([[0, 2], [0, 2]]),
        torch.tensor([NONE, NONE]),
        torch.arange(4).view(1, 4).roll(1),
    ],
    ids=["mixed", "one sample", "no content", "cut in the wrong place"],
)
def test_no_batch_to_be_found(content: Tensor) -> None:
    with pytest.raises(ProvenanceError, match="mixes the samples of a batch, or has lost its batch axis"):
        find_batch_axis(content, 2)


def test_samples_laid_out_differently() -> None:
    """A label may not depend on its place in the batch."""
    content = torch.tensor([[0, 2], [3, 1]])
    with pytest.raises(ProvenanceError, match="laid out differently"):
        ids_of_sample(content, 2, find_batch_axis(content, 2))


def test_fill_none_takes_the_only_id() -> None:
    ids = torch.tensor([[5, NONE], [NONE, 7]])
    assert torch.equal(fill_none(ids, [1]), torch.tensor([[5], [7]]))
    assert torch.equal(fill_none(ids, [0]), torch.tensor([[5, 7]]))


@pytest.mark.parametrize("axes", [[], [0, 1]])
def test_fill_none_leaves_what_is_not_clear(axes: list[int]) -> None:
    """Several ids along the axes, or no axes at all."""
    ids = torch.tensor([[5, NONE], [NONE, 7]])
    assert torch.equal(fill_none(ids, axes), ids)


@given(integers(low=-1), st.sets(st.integers(0, 3)))
def test_fill_none_never_changes_an_id(ids: Tensor, axes: set[int]) -> None:
    filled = fill_none(ids, sorted(a for a in axes if a < ids.dim())).expand(ids.shape)
    known = ids != NONE
    assert torch.equal(filled[known], ids[known])
