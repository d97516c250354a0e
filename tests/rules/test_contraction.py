"""Contractions: channel mixing, spatial mixing or aggregation, by what the contracted axes hold (Table 10)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from string import ascii_lowercase

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, label_rows, normalised, several, spread, tokens
from torch import Tensor, nn

from tlfx import Operation, RuleError
from tlfx.propagate.values import Role

SIZE = (4, 4, 6)
TOKENS = 24


# linear layers


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)], ids=["batch_first", "batch_second"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_over_channels_is_channel_mixing(order: tuple[int, ...], bias: bool) -> None:
    check(
        lambda x, linear: linear(tokens(x).permute(order)),
        lambda y, x: spread(label_rows(y), 5).permute(order),
        SIZE,
        {"linear": Operation.CHANNEL_MIX},
        linear=nn.Linear(4, 5, bias=bias),
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)], ids=["batch_first", "batch_second"])
def test_linear_over_tokens_is_spatial_mixing(order: tuple[int, ...]) -> None:
    """MLP-Mixer: Y ← Norm(|W|)·Y."""
    linear = nn.Linear(TOKENS, 7)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        mixed = label_rows(y) @ normalised(linear.weight).T
        return mixed.unsqueeze(1).expand(-1, 4, -1).permute(order)

    check(
        lambda x, linear: linear(x.flatten(2).permute(order)),
        twin,
        SIZE,
        {"linear": Operation.SPATIAL_MIX},
        linear=linear,
    )


def test_linear_over_tokens_of_windows() -> None:
    """Token mixing inside windows that are merged with the batch."""
    linear = nn.Linear(12, 12)

    def cut(x: Tensor) -> Tensor:
        return x.view(-1, 4, 2, 2, 6).transpose(1, 2).reshape(-1, 4, 12)

    check(
        lambda x, linear: linear(cut(x)),
        lambda y, x: cut(y) @ normalised(linear.weight).T,
        SIZE,
        {"linear": Operation.SPATIAL_MIX},
        linear=linear,
    )


def test_linear_on_a_flattened_map_is_aggregation() -> None:
    """The head of a VGG: every feature sees the whole map, uniformly."""
    check(
        lambda x, linear: linear(x.flatten(1)),
        lambda y, x: spread(y.mean((1, 2, 3)), 5),
        SIZE,
        {"linear": Operation.AGGREGATION},
        linear=nn.Linear(96, 5),
    )


def test_patch_merging_is_aggregation() -> None:
    """Swin: the channels of 2x2 tokens side by side, then a linear layer."""

    def merge(x: Tensor, linear: nn.Module) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return linear(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1))

    check(
        merge,
        lambda y, x: spread(F.avg_pool2d(y[:, 0], 2), 8),
        SIZE,
        {"linear": Operation.AGGREGATION, "cat": Operation.LAYOUT},
        linear=nn.Linear(16, 8),
    )


@pytest.mark.parametrize("order", [(1, 3, 5), (3, 5, 1), (5, 1, 3)])
def test_patches_by_rearrangement_are_aggregated(order: tuple[int, ...]) -> None:
    """einops patchify: uniform over each patch, whatever the order of pixels and channels within it."""

    def function(x: Tensor, linear: nn.Module) -> Tensor:
        return linear(x.unflatten(3, (3, 2)).unflatten(2, (2, 2)).permute(0, 2, 4, *order).flatten(3))

    check(
        function,
        lambda y, x: spread(F.avg_pool2d(y[:, 0], 2), 8),
        SIZE,
        {"linear": Operation.AGGREGATION},
        linear=nn.Linear(16, 8),
    )


def test_linear_with_a_reparametrised_weight() -> None:
    """The weight that runs is the one that counts."""
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(TOKENS, TOKENS))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return (label_rows(y) @ normalised(linear.weight).T).unsqueeze(1).expand(-1, 4, -1)

    check(lambda x, linear: linear(x.flatten(2)), twin, SIZE, {"linear": Operation.SPATIAL_MIX}, linear=linear)


def test_a_weight_of_zeros_mixes_uniformly() -> None:
    """Norm(|W|) of a zero-initialised layer: rows still sum to 1."""
    linear = nn.Linear(TOKENS, 3)
    nn.init.zeros_(linear.weight)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        return label_rows(y).mean(1)[:, None, None].expand(-1, 4, 3)

    check(lambda x, linear: linear(x.flatten(2)), twin, SIZE, linear=linear)


# matrix products with parameters


def test_matmul_from_either_side() -> None:
    """W·X mixes tokens, X·W channels."""
    weight = nn.Parameter(torch.randn(7, TOKENS))
    check(
        lambda x, w: w @ tokens(x),
        lambda y, x: spread(label_rows(y) @ normalised(weight).T, 4),
        SIZE,
        {"matmul": Operation.SPATIAL_MIX},
        w=weight,
    )
    check(
        lambda x, w: tokens(x) @ w,
        lambda y, x: spread(label_rows(y), 5),
        SIZE,
        {"matmul": Operation.CHANNEL_MIX},
        w=nn.Parameter(torch.randn(4, 5)),
    )


def test_a_weight_of_its_own_for_each_channel_group() -> None:
    """Heads of token mixing: |W| averaged over heads, then normalised."""
    weight = nn.Parameter(torch.randn(2, TOKENS, TOKENS))

    def function(x: Tensor, w: Tensor) -> Tensor:
        return w @ tokens(x).view(-1, TOKENS, 2, 2).transpose(1, 2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        mixed = label_rows(y) @ normalised(weight.abs().mean(0)).T
        return mixed[:, None, :, None].expand(-1, 2, -1, 2)

    check(function, twin, SIZE, {"matmul": Operation.SPATIAL_MIX}, w=weight)


def test_columns_and_their_channels_at_once() -> None:
    """Vision Permutator, in each row of the image: |W| summed over channels, then normalised."""
    linear = nn.Linear(6 * 4, 6 * 4)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weight = linear.weight.view(6, 4, 6, 4).abs().sum((1, 3))
        return spread(label_rows(y).view(-1, 4, 6) @ normalised(weight).T, 4)

    check(
        lambda x, linear: linear(x.permute(0, 2, 3, 1).flatten(2)).unflatten(2, (6, 4)),
        twin,
        SIZE,
        {"linear": Operation.SPATIAL_MIX},
        linear=linear,
    )


def test_mm_of_tokens_merged_with_the_batch() -> None:
    check(
        lambda x, w: torch.mm(tokens(x).reshape(-1, 4), w),
        lambda y, x: spread(label_rows(y).flatten(), 5),
        SIZE,
        {"mm": Operation.CHANNEL_MIX},
        w=nn.Parameter(torch.randn(4, 5)),
    )


def test_vectors() -> None:
    """A score for each token, and for each sample."""
    check(lambda x, w: tokens(x) @ w, lambda y, x: label_rows(y), SIZE, w=nn.Parameter(torch.randn(4)))
    check(
        lambda x, w: torch.mv(tokens(x).reshape(-1, 4), w)[:, None],
        lambda y, x: label_rows(y).reshape(-1, 1),
        SIZE,
        {"mv": Operation.CHANNEL_MIX},
        w=nn.Parameter(torch.randn(4)),
    )
    check(
        lambda x, w: (x.flatten(1) @ w)[:, None],
        lambda y, x: y.mean((1, 2, 3))[:, None],
        SIZE,
        {"matmul": Operation.AGGREGATION},
        w=nn.Parameter(torch.randn(96)),
    )


def test_products_that_add() -> None:
    """addmm, baddbmm: a bias adds nothing, content is a residual connection."""
    weight = nn.Parameter(torch.randn(4, 4))

    def flat(y: Tensor) -> Tensor:
        return tokens(y).reshape(-1, 4)

    check(lambda x, w: torch.addmm(w[0], flat(x), w), lambda y, x: flat(y), SIZE, w=weight)
    check(
        lambda x, w: torch.addmm(flat(x.flip(3)), flat(x), w, beta=0.5, alpha=2),
        lambda y, x: flat(y + y.flip(3)) / 2,
        SIZE,
        {"addmm": Operation.RESIDUAL},
        w=weight,
    )
    check(
        lambda x, w: torch.baddbmm(tokens(x), tokens(x), w.expand(x.shape[0], -1, -1)),
        lambda y, x: tokens(y),
        SIZE,
        w=weight,
    )


# einsum


@st.composite
def einsums(draw: st.DrawFn) -> tuple[str, str, str, bool, dict[int, str]]:
    """Images (b, c, h, w) in any order, a parameter over some of their axes and another axis, d, and an output."""
    subscripts = dict(zip("bchwd", draw(st.permutations(ascii_lowercase))[:5], strict=True))
    of_x = "".join(draw(st.permutations("bchw")))
    of_w = "".join(draw(st.permutations([*draw(st.lists(st.sampled_from("chw"), unique=True, min_size=1)), "d"])))
    kept = draw(st.lists(st.sampled_from("chw"), unique=True))
    out = "".join(draw(st.permutations(["b", "d", *kept])))
    rename = str.maketrans(subscripts)
    return of_x, of_w, out, draw(st.booleans()), rename


def einsum_twin(of_w: str, out: str, weight: Tensor, y: Tensor) -> Tensor:
    """Dense |W| over (c, h, w, d), averaged over channels; uniform if tokens are contracted together with channels."""
    gone = set("chw") - set(out)
    dense = weight.double().abs()
    dense = dense.permute([of_w.index(a) for a in "chwd" if a in of_w])
    for axis, letter in enumerate("chwd"):
        dense = dense if letter in of_w else dense.unsqueeze(axis)
    dense = dense.expand(4, 3, 5, 2).mean(0)
    if "c" in gone:
        dense = torch.ones_like(dense)
    mixed, total = dense * y[:, 0, :, :, None], dense
    for axis, letter in enumerate("hw"):
        if letter in gone:
            mixed, total = mixed.sum(1 + axis, keepdim=True), total.sum(axis, keepdim=True)
    mixed = mixed / total
    full = mixed.unsqueeze(1).expand(-1, 4, *mixed.shape[1:])
    kept = [a for a in "bchwd" if a in out]
    full = full[tuple(slice(None) if a in out else 0 for a in "bchwd")]
    return full.permute([kept.index(a) for a in out])


@several(15)
@given(einsums())
def test_einsum_with_a_parameter(drawn: tuple[str, str, str, bool, dict[int, str]]) -> None:
    of_x, of_w, out, swapped, rename = drawn
    sizes = dict(zip("chwd", (4, 3, 5, 2), strict=True))
    weight = nn.Parameter(torch.randn([sizes[a] for a in of_w]))
    terms = f"{of_w},{of_x}" if swapped else f"{of_x},{of_w}"
    formula = f"{terms}->{out}".translate(rename)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        x = x.permute(["bchw".index(a) for a in of_x])
        return torch.einsum(formula, *((weight, x) if swapped else (x, weight)))

    gone = set("chw") - set(out)
    expected = Operation.AGGREGATION if "c" in gone else Operation.SPATIAL_MIX
    expected = expected if gone & {"h", "w"} else Operation.CHANNEL_MIX
    check(
        function,
        lambda y, x: einsum_twin(of_w, out, weight, y),
        (4, 3, 5),
        {"einsum": expected},
        weight=weight,
    )


def test_einsum_of_one_operand() -> None:
    """A permutation, a sum over tokens, a sum over channels."""
    check(lambda x: torch.einsum("bchw->hbwc", x), lambda y, x: y.permute(2, 0, 3, 1), SIZE)
    check(
        lambda x: torch.einsum("bchw->cb", x),
        lambda y, x: y.mean((2, 3)).T,
        SIZE,
        {"einsum": Operation.AGGREGATION},
    )
    check(lambda x: torch.einsum("bchw->bwh", x), lambda y, x: y[:, 0].mT, SIZE, {"einsum": Operation.CHANNEL_MIX})


@pytest.mark.parametrize(
    ("formula", "order"),
    [("...c,cd->...d", (0, 2, 3, 1)), ("bij...,jk->bik...", (0, 2, 1, 3)), ("c...,dc->d...", (1, 0, 2, 3))],
)
def test_einsum_with_an_ellipsis(formula: str, order: tuple[int, ...]) -> None:
    """Axes without a letter come along."""
    check(
        lambda x, w: torch.einsum(formula, x.permute(order), w),
        lambda y, x: y.permute(order),
        SIZE,
        {"einsum": Operation.CHANNEL_MIX},
        w=nn.Parameter(torch.randn(4, 4)),
    )


def test_einsum_with_an_implicit_output() -> None:
    check(
        lambda x, w: torch.einsum("bchw,cd", x, w),
        lambda y, x: (
            y[:, 0].unsqueeze(2).expand(-1, -1, 4, -1).permute(0, 2, 1, 3).permute(0, 1, 2, 3)
            if False
            else y[:, 0].unsqueeze(1).expand(-1, 4, -1, -1)
        ),
        SIZE,
        w=nn.Parameter(torch.randn(4, 4)),
    )


def test_einsum_of_three_operands_over_channels() -> None:
    check(
        lambda x, w: torch.einsum("bchw,cd,de->behw", x, w, w),
        lambda y, x: y[:, :1].expand(-1, 4, -1, -1),
        SIZE,
        {"einsum": Operation.CHANNEL_MIX},
        w=nn.Parameter(torch.randn(4, 4)),
    )


def test_einsum_of_three_operands_over_tokens() -> None:
    """Linear attention and its normaliser in one: |q|·|k|ᵀ mixes the tokens, the factor leaves them in place."""

    def function(x: Tensor) -> Tensor:
        q = tokens(x).sigmoid()
        context = torch.einsum("bnd,bne->bde", q, tokens(x))
        return torch.einsum("bnd,bde,bn->bne", q, context, 1 / (q @ q.sum(1).unsqueeze(-1))[..., 0])

    def twin(y: Tensor, x: Tensor) -> Tensor:
        q = tokens(x).sigmoid()
        weights = normalised(q @ q.transpose(1, 2))
        return spread((weights @ label_rows(y).unsqueeze(-1))[..., 0], 4)

    check(function, twin, SIZE, {"einsum": Operation.SPATIAL_MIX})


def test_einsum_that_mixes_by_a_weight_of_its_own_is_an_error() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bnd,bmd,mk,bke->bne", tokens(x), tokens(x), w, tokens(x))

    with pytest.raises(RuleError, match=r"einsum computes its own mixing weights, .*: write it as two operators"):
        Probe(function, SIZE, w=nn.Parameter(torch.randn(TOKENS, TOKENS)))


def test_a_token_read_by_channels_of_its_own() -> None:
    """The state of a recurrence under its read-out: broadcast along channels, a factor leaves labels alone."""

    def function(x: Tensor) -> Tensor:
        state = tokens(x).unsqueeze(-1).expand(-1, -1, -1, 3).cumsum(1)
        return torch.einsum("bnds,bns->bnd", state, tokens(x)[..., :3])

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = label_rows(y)
        return spread(rows.cumsum(1) / torch.arange(1, TOKENS + 1), 4)

    check(function, twin, SIZE)


def test_products_of_different_values_of_the_same_tokens_are_averaged() -> None:
    """Σ x·g(x) over channels, g having mixed the tokens: rule of products."""
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def function(x: Tensor, conv: nn.Module) -> Tensor:
        return torch.einsum("bchw,bchw->bhw", x, conv(x))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        kernel = conv.weight.double().abs().mean((0, 1))[None, None]
        ones = torch.ones_like(y[:, :1])
        return (y[:, 0] + (F.conv2d(y[:, :1], kernel, padding=1) / F.conv2d(ones, kernel, padding=1))[:, 0]) / 2

    check(function, twin, SIZE, conv=conv)


def test_bilinear() -> None:
    """Both inputs of the same tokens: their label."""
    check(
        lambda x, layer: layer(tokens(x), tokens(x).tanh()),
        lambda y, x: spread(label_rows(y), 5),
        SIZE,
        {"bilinear": Operation.CHANNEL_MIX},
        layer=nn.Bilinear(4, 4, 5),
    )


def test_pooling_of_a_sequence_by_one_weight_each() -> None:
    """Tokens contracted between a softmax over them and themselves (CCT): one row, Y ← softmax·Y."""
    score = nn.Linear(4, 1)

    def function(x: Tensor, score: nn.Module) -> Tensor:
        return (score(tokens(x)).softmax(1).transpose(1, 2) @ tokens(x)).squeeze(1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weights = deepcopy(score).double()(tokens(x)).softmax(1)[..., 0]
        return spread((weights * label_rows(y)).sum(1), 4)

    check(function, twin, SIZE, score=score)


def test_channels_of_two_values_make_a_weight() -> None:
    """q·kᵀ of different tokens depends on the image and has no label."""
    probe = Probe(lambda x: (x, tokens(x) @ x.flatten(2)), SIZE)
    assert probe.roles == [Role.CONTENT, Role.WEIGHT]
    assert probe.operation("matmul") is Operation.WEIGHT


def test_channels_of_one_token_make_content() -> None:
    """A dot product of two values of the same token stays with it."""
    check(
        lambda x: torch.einsum("bnc,bnc->bn", tokens(x), tokens(x).tanh()),
        lambda y, x: label_rows(y),
        SIZE,
        {"einsum": Operation.CHANNEL_MIX},
    )


def test_contexts_of_unlike_parts_are_refused() -> None:
    """One whose values are known, by a softmax over the tokens of its keys, beside one that may be read both ways."""

    def function(x: Tensor) -> Tensor:
        t = tokens(x)
        return t @ (t.softmax(1).mT @ t + t.mT @ t)

    with pytest.raises(RuleError, match=r"adds two products kᵀv of linear attention .* concatenate their keys"):
        Probe(function, SIZE)


def test_a_bias_makes_padding_tokens_without_content() -> None:
    """Padding that bilinear layers with and without a bias come after, under weights that the image decides."""
    torch.manual_seed(0)
    parts = {"weight": nn.Parameter(torch.rand(4, 4, 4)), "bias": nn.Parameter(torch.rand(4))}

    def attended(values: Callable[..., Tensor]) -> Tensor:
        def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            t = F.pad(x.flatten(2).mT, (0, 0, 0, 3))
            return (t @ t.mT).softmax(-1) @ values(t, weight, bias)

        return Probe(function, (4, 2, 3), **parts).shares(torch.rand(3, 1, 2, 3, generator=torch.Generator()))[0]

    by_einsum = attended(lambda t, weight, bias: torch.einsum("bni,oij,bnj->bno", t, weight, t) + bias)
    torch.testing.assert_close(attended(lambda t, weight, bias: F.bilinear(t, t, weight, bias)), by_einsum)
    without = attended(lambda t, weight, bias: F.bilinear(t, t, weight))
    assert not torch.allclose(without, by_einsum, atol=1e-3)
