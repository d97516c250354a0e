"""Indexing: labels move by the same indices, known when the model is captured or found as it runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, check_moves, label_rows, several, tokens
from torch import Tensor, nn

from tlfx import CaptureError, Operation, ProvenanceError, runtime
from tlfx.propagate.values import Role

aten = torch.ops.aten
SIZE = (4, 3, 4)
TOKENS = 12

KNOWN: dict[str, Callable[..., Any]] = {
    "index": lambda x, where: x[:, :, where],
    "index_of_channels": lambda x, where: x[:, where],
    "two_indices": lambda x, where: x[:, :, where, where],
    "index_last": lambda x, where: x[..., where],
    "index_table": lambda x, where: x[:, :, :, torch.stack((where, where.flip(0)))],
    "split_indices": lambda x, where: x[:, where, :, where],
    "index_select": lambda x, where: x.index_select(2, where),
    "gather": lambda x, where: x.gather(3, where.expand(x.shape[0], 4, 3, 2)),
    "take_along_dim": lambda x, where: torch.take_along_dim(x, where.view(1, 1, 1, 2), 3),
    "indices_from_arithmetic": lambda x, where: x[..., (where * 2 + 1) % 4],
    "permutation": lambda x, where: x[..., torch.arange(3, -1, -1)],
    "list": lambda x, where: x[:, [2, 0, 2]],
    "constant_made_in_the_forward": lambda x, where: x[:, torch.tensor([2, 0])],
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_indices_are_a_movement(name: str) -> None:
    check_moves(KNOWN[name], SIZE, where=torch.tensor([2, 0]))


MASK = torch.tensor([True, False, True, True])
MASKED: dict[str, Callable[..., Any]] = {
    "index": lambda x, mask: x[..., mask],
    "index_of_channels": lambda x, mask: x[:, mask],
    "index_of_two_axes": lambda x, mask: x.movedim(2, 1)[:, :, torch.tensor([[True, False, True, True]] * 4)],
    "nonzero": lambda x, mask: x[..., mask.nonzero()[:, 0]],
    "nonzero_as_tuple": lambda x, mask: x[..., torch.nonzero(mask, as_tuple=True)[0]],
    "argwhere": lambda x, mask: x.index_select(3, torch.argwhere(mask)[:, 0]),
    "where": lambda x, mask: x[..., torch.where(mask)[0]],
    "literal": lambda x, mask: x[..., torch.tensor([True, False, True, True])],
}


@pytest.mark.parametrize("name", MASKED)
def test_what_a_known_mask_chooses_is_a_movement(name: str) -> None:
    check_moves(MASKED[name], SIZE, mask=MASK)


def test_repeats_that_are_known() -> None:
    repeats = torch.tensor([1, 0, 3, 2])
    check_moves(lambda x, repeats: x.repeat_interleave(repeats, 3), SIZE, repeats=repeats)
    check_moves(lambda x: torch.repeat_interleave(x, torch.tensor([1, 0, 3, 2]), dim=3), SIZE)


def test_a_mask_or_repeats_that_are_not_known() -> None:
    """Export knows no size for what they choose, if the forward computes or changes them."""
    message = "A mask that never changes can be a buffer that the forward uses as it is"

    def written(x: Tensor, mask: Tensor) -> Tensor:
        mask[1] = True
        return x[..., mask]

    for function in (written, lambda x, mask: x[..., ~mask], lambda x, mask: x[..., x.mean((0, 1, 2)) > 0]):
        with pytest.raises(CaptureError, match=message):
            Probe(function, SIZE, mask=MASK.clone())
    with pytest.raises(CaptureError, match="Pass output_size=, the sum of the repeats, or keep them in a buffer"):
        Probe(lambda x, mask: x.repeat_interleave(mask.long(), 3), SIZE, mask=MASK)


def test_a_mask_of_the_image_whose_count_is_forced() -> None:
    """A view tells how many tokens the mask chooses in all; which these are is not known."""

    def largest(x: Tensor) -> Tensor:
        score = scores(x)
        return tokens(x)[score > score.sort(1)[0][:, :1]].view(len(x), TOKENS - 1, 4)

    with pytest.raises(ProvenanceError, match="depends on the image or on chance, so it is not known at capture"):
        Probe(largest, SIZE)


@several(8)
@given(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=8), st.sampled_from([0, 1, 2]))
def test_known_indices_in_any_layout(chosen: list[int], place: int) -> None:
    def function(x: Tensor, chosen: Tensor) -> Tensor:
        sequence = tokens(x).movedim(0, place)
        return sequence.index_select(0 if place else 1, chosen)

    check_moves(function, SIZE, chosen=torch.tensor(chosen))


# indices that depend on the image


def scores(x: Tensor) -> Tensor:
    """A score for each token."""
    return tokens(x).square().sum(-1)


def test_token_pruning() -> None:
    """The best tokens by their score, and their labels with them."""

    def chosen(x: Tensor) -> Tensor:
        return scores(x).topk(5, dim=1).indices

    def function(x: Tensor) -> Tensor:
        return tokens(x).gather(1, chosen(x).unsqueeze(-1).expand(-1, -1, 4))

    check(function, lambda y, x: label_rows(y).gather(1, chosen(x)).unsqueeze(-1).expand(-1, -1, 4), SIZE)


def test_pruned_tokens_go_on() -> None:
    """What is computed from pruned tokens starts from their labels."""
    linear = nn.Linear(4, 4)

    def chosen(x: Tensor) -> Tensor:
        return scores(x).argsort(1, descending=True)[:, :6]

    def function(x: Tensor, linear: nn.Module) -> Tensor:
        kept = torch.take_along_dim(tokens(x), chosen(x).unsqueeze(-1), 1)
        return (kept + linear(kept).relu()).mean(1)

    check(
        function,
        lambda y, x: label_rows(y).gather(1, chosen(x)).mean(1, keepdim=True).expand(-1, 4),
        SIZE,
        linear=linear,
    )


def test_pruning_by_two_indices() -> None:
    """x[batch, chosen]: the batch comes along."""

    def chosen(x: Tensor) -> Tensor:
        return scores(x).argsort(1)[:, :5]

    def function(x: Tensor) -> Tensor:
        return tokens(x)[torch.arange(x.shape[0])[:, None], chosen(x)]

    check(function, lambda y, x: tokens(y).gather(1, chosen(x).unsqueeze(-1).expand(-1, -1, 4)), SIZE)


def test_pruning_beside_a_class_token() -> None:
    """A token of λ that is always kept (EViT)."""
    token = nn.Parameter(torch.randn(1, 1, 4))

    def chosen(x: Tensor) -> Tensor:
        return scores(x).topk(4, dim=1).indices.sort(1).values

    def function(x: Tensor, token: Tensor) -> Tensor:
        sequence = torch.cat((token.expand(x.shape[0], -1, -1), tokens(x)), 1)
        index = chosen(x).unsqueeze(-1).expand(-1, -1, 4)
        return torch.cat((sequence[:, :1], sequence[:, 1:].gather(1, index)), 1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = torch.cat((y.mean((1, 2, 3))[:, None], label_rows(y).gather(1, chosen(x))), 1)
        return rows.unsqueeze(-1).expand(-1, -1, 4)

    check(function, twin, SIZE, token=token)


def test_tokens_second_batch_first() -> None:
    """gather along the first axis, the batch on the second."""

    def chosen(x: Tensor) -> Tensor:
        return scores(x).argsort(1)[:, :5].transpose(0, 1)

    def function(x: Tensor) -> Tensor:
        return tokens(x).transpose(0, 1).gather(0, chosen(x).unsqueeze(-1).expand(-1, -1, 4))

    check(function, lambda y, x: function_of_labels(y, chosen(x)), SIZE)


def function_of_labels(y: Tensor, chosen: Tensor) -> Tensor:
    return tokens(y).transpose(0, 1).gather(0, chosen.unsqueeze(-1).expand(-1, -1, 4))


def test_gather_inside_windows() -> None:
    """Windows merged with the batch, each with a separate order."""

    def cut(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(0, 1)

    def order(x: Tensor) -> Tensor:
        return cut(x).sum(-1).argsort(1).unsqueeze(-1).expand(-1, -1, 4)

    check(lambda x: cut(x).gather(1, order(x)), lambda y, x: cut(y).gather(1, order(x)), SIZE)


def test_patches_dropped_by_chance() -> None:
    """Patch dropout: the same random indices move images and labels; a constant label stays."""

    def function(x: Tensor) -> Tensor:
        kept = torch.randn(x.shape[0], TOKENS).argsort(-1)[:, :6]
        return tokens(x).gather(1, kept.unsqueeze(-1).expand(-1, -1, 4))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return function(y)

    check(function, twin, SIZE)


def test_an_index_expanded_along_channels_moves_one_label_a_token() -> None:
    def function(x: Tensor) -> Tensor:
        return tokens(x).gather(1, scores(x).argsort(1)[:, :5].unsqueeze(-1).expand(-1, -1, 4))

    (label,) = [la for la in Probe(function, SIZE).propagation.labels.tensors if la.function is runtime.gather_labels]
    assert label.size == 5


def test_an_order_for_each_channel() -> None:
    def order(x: Tensor) -> Tensor:
        return tokens(x).argsort(1)

    check(lambda x: tokens(x).gather(1, order(x)), lambda y, x: tokens(y).gather(1, order(x)), SIZE)


ACROSS: dict[str, Callable[..., Any]] = {
    "chosen by the image": lambda x: x.index_select(0, x.sum((1, 2, 3)).argsort()),
    "shuffled with the tokens": lambda x: x[torch.randperm(x.shape[0])[:, None], :, scores(x).argmax(1)[:, None] % 3],
    "flipped": lambda x: x[torch.arange(x.shape[0] - 1, -1, -1), :, x.sum((1, 2, 3)).long() % 3],
    "scattered": lambda x: torch.zeros_like(x).index_copy(0, torch.randperm(x.shape[0]), x),
    "sorted": lambda x: x.sort(0).values,
}


@pytest.mark.parametrize("name", ACROSS)
def test_moving_across_samples_is_an_error(name: str) -> None:
    with pytest.raises(ProvenanceError, match="moves image content between the samples of a batch, or by indices that"):
        Probe(ACROSS[name], SIZE)


def three_nearest(x: Tensor) -> Tensor:
    """Indices (batch, tokens, 3) of the tokens (batch, tokens, channels) most like each."""
    return (x @ x.mT).topk(3, -1)[1]


def starts(x: Tensor, step: int) -> Tensor:
    return step * torch.arange(len(x)).view(-1, 1, 1)


LEAVING: dict[str, Callable[[Tensor], Tensor]] = {
    "no_offset": three_nearest,
    "half_an_offset": lambda x: three_nearest(x) + starts(x, x.shape[1] // 2),
    "one_less": lambda x: three_nearest(x) + starts(x, x.shape[1]) - 1,
    "next_sample": lambda x: three_nearest(x) + starts(x, x.shape[1]).flip(0),
    "unknown_offset": lambda x: three_nearest(x) + starts(x, x.shape[1]) + torch.randint(2, (1,)),
    "doubled": lambda x: three_nearest(x) * 2 + starts(x, x.shape[1]),
    "remainder_of_all": lambda x: (three_nearest(x) + starts(x, x.shape[1])) % (x.shape[1] + 1),
    "negative_remainder": lambda x: torch.fmod(three_nearest(x) - 1, x.shape[1]) + starts(x, x.shape[1]),
}
"""Indices among the tokens of all samples; spellings that stay in their samples are in tests/equivalents/indices.py."""


@pytest.mark.parametrize("name", LEAVING)
def test_indices_that_may_leave_their_sample_are_an_error(name: str) -> None:
    with pytest.raises(ProvenanceError, match="moves image content between the samples of a batch"):
        Probe(lambda x: tokens(x).flatten(0, 1)[LEAVING[name](tokens(x))].mean(2), SIZE)


@pytest.mark.parametrize("name", LEAVING)
def test_writing_at_indices_that_may_leave_their_sample_is_an_error(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        flat = tokens(x).flatten(0, 1)
        return torch.zeros_like(flat).index_add(0, LEAVING[name](tokens(x))[..., 0].flatten(), flat)

    with pytest.raises(ProvenanceError, match="moves image content between the samples of a batch"):
        Probe(function, SIZE)


# writing at indices that depend on the image, as token merging does


def halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens to merge into others (batch, 6, 4), those others, and where each goes (batch, 6)."""
    one, other = tokens(x)[:, ::2], tokens(x)[:, 1::2]
    return one, other, (one @ other.transpose(1, 2)).argmax(-1)


@pytest.mark.parametrize(
    ("include_self", "reduce"),
    slow_except([(True, "sum"), (True, "mean"), (False, "amax")], product((True, False), ("sum", "mean", "amax"))),
)
def test_token_merging(reduce: str, include_self: bool) -> None:
    """Tokens that meet are averaged; those that nothing is merged into keep their label."""

    def function(x: Tensor) -> Tensor:
        one, other, where = halves(x)
        index = where.unsqueeze(-1).expand(-1, -1, 4)
        return other.scatter_reduce(1, index, one, reduce, include_self=include_self)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        (one, other, _), (_, _, where) = halves(y), halves(x)
        out = other.clone()
        for sample in range(len(x)):
            for place in range(6):
                merged = [*one[sample, where[sample] == place]]
                if merged:
                    out[sample, place] = torch.stack(merged + [other[sample, place]] * include_self).mean(0)
        return out

    probe = check(function, twin, SIZE, {"scatter_reduce": Operation.AGGREGATION})
    assert [la.size for la in probe.propagation.labels.tensors if la.function is runtime.scatter_labels] == [6]


def test_merging_by_a_sum_onto_nothing() -> None:
    """Places that nothing goes to have the label of the image, as tokens without content have."""

    def function(x: Tensor) -> Tensor:
        one, _, where = halves(x)
        return torch.zeros_like(one).scatter_add(1, where.unsqueeze(-1).expand(-1, -1, 4), one)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        one, where = halves(y)[0], halves(x)[2]
        out = y.mean((1, 2, 3)).view(-1, 1, 1).repeat(1, 6, 4)
        for sample in range(len(x)):
            for place in where[sample].unique():
                out[sample, place] = one[sample, where[sample] == place].mean(0)
        return out

    check(function, twin, SIZE)


def test_tokens_brought_back_to_their_places() -> None:
    """What pruning took away stays empty, what it left returns to where it was."""

    def order(x: Tensor) -> Tensor:
        return scores(x).argsort(1).unsqueeze(-1).expand(-1, -1, 4)

    def function(x: Tensor) -> Tensor:
        kept = tokens(x).gather(1, order(x)[:, :5])
        return torch.zeros(x.shape[0], TOKENS, 4).scatter(1, order(x)[:, :5], kept * 2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        image = y.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, TOKENS, 4)
        return image.scatter(1, order(x)[:, :5], tokens(y).gather(1, order(x)[:, :5]))

    check(function, twin, SIZE)


def test_adding_at_known_places() -> None:
    def function(x: Tensor, where: Tensor) -> tuple[Tensor, ...]:
        part = x[..., :2]
        return (
            x.index_add(3, where, part, alpha=2),
            aten.index_put(x, [None, None, None, where], part, True),
            x.index_reduce(3, where, part, "amax"),
        )

    def twin(y: Tensor, x: Tensor) -> list[Tensor]:
        out = y.clone()
        for source, place in ((0, 3), (1, 0)):
            out[..., place] = (y[..., place] + y[..., source]) / 2
        return [out] * 3

    check(function, twin, SIZE, where=torch.tensor([3, 0]))


def test_written_slices_are_a_movement() -> None:
    def function(x: Tensor, where: Tensor) -> tuple[Tensor, ...]:
        part = x[..., :2]
        return (
            x.index_copy(3, where, part),
            x.slice_scatter(part, 3, 1, 3),
            x.select_scatter(x[:, :, 0], 2, 1),
            x.scatter(3, where.expand(x.shape[0], 4, 3, 2), part),
            x.masked_scatter(torch.arange(4) > 1, part),
        )

    check_moves(function, SIZE, where=torch.tensor([3, 0]))


def test_a_number_at_known_places_has_no_content() -> None:
    def function(x: Tensor, where: Tensor) -> tuple[Tensor, ...]:
        mask = torch.zeros(4, dtype=torch.bool).index_fill(0, where, True)
        index = where.expand(x.shape[0], 4, 3, 2)
        return x.index_fill(3, where, 2.0), x.masked_fill(mask, 1.0), x.scatter(3, index, 0.0)

    def twin(y: Tensor, x: Tensor) -> list[Tensor]:
        out = y.clone()
        out[..., [3, 0]] = torch.nan
        return [out] * 3

    check(function, twin, SIZE, {"index_fill": Operation.POINTWISE}, where=torch.tensor([3, 0]))


def test_a_number_at_places_from_the_image_is_point_wise() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x.scatter(1, x.argmax(1, keepdim=True), 1.0), x.masked_fill(x > 0, 1.0)

    check(function, lambda y, x: [y, y], SIZE, {"masked_fill": Operation.POINTWISE})


def test_a_known_condition_chooses() -> None:
    def function(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x, x.flip(3))

    check_moves(function, SIZE, mask=torch.tensor([True, False, True, True]))


# sorting, choosing, looking up


@pytest.mark.parametrize("name", ["topk", "sort", "sort_stable"])
def test_values_in_order_bring_their_labels(name: str) -> None:
    functions: dict[str, Callable[[Tensor], Any]] = {
        "topk": lambda x: x.topk(2, dim=2),
        "sort": lambda x: x.sort(2, descending=True),
        "sort_stable": lambda x: torch.sort(x, dim=2, stable=True),
    }
    order = functions[name]
    check(lambda x: order(x).values, lambda y, x: y.gather(2, order(x).indices), SIZE)


def test_channels_in_order_keep_their_label() -> None:
    """Values, and decisions about them, belong to the token whose channels they are."""
    functions = (
        lambda x: x.topk(4, dim=1).values,
        lambda x: x.sort(1).indices,
        lambda x: x.argsort(1),
        lambda x: x.argmax(1, keepdim=True).expand(-1, 4, -1, -1),
    )
    for function in functions:
        check(function, lambda y, x: y[:, :1].expand(-1, 4, -1, -1), SIZE)


def test_indices_of_an_order_of_tokens_are_decisions() -> None:
    probe = Probe(lambda x: (*x.topk(2, 2), *x.sort(2)), SIZE)
    assert probe.roles == [Role.CONTENT, Role.WEIGHT] * 2


def test_a_learned_vector_chosen_by_content() -> None:
    """An embedding has the label of what chose it."""

    def function(x: Tensor, table: nn.Module) -> Tensor:
        return table((x.sigmoid() * 4).long())

    check(function, lambda y, x: y.unsqueeze(-1).expand(-1, -1, -1, -1, 3), SIZE, table=nn.Embedding(5, 3))


def test_embedding_of_positions_is_constant() -> None:
    probe = Probe(lambda x, table: (x, table(torch.arange(5))), SIZE, table=nn.Embedding(5, 3))
    assert probe.roles == [Role.CONTENT, Role.CONSTANT]


def test_one_hot_decisions_are_weights() -> None:
    """Hard assignment of tokens to groups."""
    probe = Probe(lambda x: (x, F.one_hot(scores(x).argmax(1), TOKENS)), SIZE)
    assert probe.roles == [Role.CONTENT, Role.WEIGHT]


def test_writing_at_known_places() -> None:
    """x[..., where] = other."""

    def function(x: Tensor, where: Tensor) -> Tensor:
        out = x.clone()
        out[:, :, :, where] = x[:, :, :, :2]
        return out

    check_moves(function, SIZE, where=torch.tensor([3, 0]))


def test_writing_a_constant_leaves_no_content() -> None:
    def function(x: Tensor, where: Tensor) -> Tensor:
        out = x.clone()
        out[:, :, where] = torch.zeros(1)
        return out

    def twin(y: Tensor, x: Tensor) -> Tensor:
        out = y.clone()
        out[:, :, [2, 0]] = torch.nan
        return out

    check(function, twin, SIZE, where=torch.tensor([2, 0]))


def test_operations_of_indexing() -> None:
    """Known indices are layout; indices from the image are layout as well, with labels that move."""
    probe = Probe(lambda x: tokens(x).gather(1, scores(x).argsort(1).unsqueeze(-1).expand(-1, -1, 4)), SIZE)
    assert probe.operation("gather") is Operation.LAYOUT
    assert probe.operation("argsort") is Operation.WEIGHT


def test_numbers_scattered_in_place() -> None:
    """``scatter_`` goes by the rule of ``scatter`` with a number: point-wise."""
    check(lambda x: x.clone().scatter_(1, x.argmax(1, keepdim=True), 1.0), lambda y, x: y, SIZE)
