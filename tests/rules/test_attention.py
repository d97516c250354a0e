"""Attention: Y ← Norm(W)·Y with W after softmax and before dropout, averaged over heads (eq. 7, 9)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from string import ascii_lowercase
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equivalents.spelling import joined
from helpers import slow_except
from hypothesis import given
from hypothesis import strategies as st
from rule_harness import Probe, check, label_rows, normalised, several, tokens
from torch import Tensor, nn

from tlfx import Operation
from tlfx.propagate.values import Role

HEADS, DEPTH = 2, 3
SIZE = (3 * HEADS * DEPTH, 3, 4)
"""Channels for query, key and value of every pixel."""
TOKENS = 12
SPATIAL = {"scaled_dot_product_attention": Operation.SPATIAL_MIX}


def heads(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (batch, heads, tokens, depth) from the channels of the images."""
    query, key, value = tokens(x).view(x.shape[0], -1, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def weights(query: Tensor, key: Tensor, scale: float = DEPTH**-0.5, bias: Tensor | float = 0.0) -> Tensor:
    """Eq. 7, head by head and query by query: softmax(q·kᵀ·scale + bias) averaged over heads, (batch, n, m)."""
    batch, count, n, _ = query.shape
    weight = torch.zeros(batch, n, key.shape[2], dtype=torch.float64)
    bias = torch.as_tensor(bias, dtype=torch.float64).expand(batch, count, n, key.shape[2])
    for b in range(batch):
        for h in range(count):
            for i in range(n):
                scores = torch.stack([(query[b, h, i] * k).sum() for k in key[b, h]]) * scale + bias[b, h, i]
                weight[b, i] += scores.double().softmax(0) / count
    return weight


def mixed(weight: Tensor, rows: Tensor, channels: int = HEADS * DEPTH) -> Tensor:
    """Eq. 9: Y ← W·Y, one label for all channels of a token."""
    return torch.einsum("bnm,bm->bn", weight.double(), rows).unsqueeze(-1).expand(-1, -1, channels)


def attention_twin(bias: Tensor | float = 0.0, scale: float = DEPTH**-0.5) -> Callable[[Tensor, Tensor], Tensor]:
    """Twin of self-attention over all pixels."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        return mixed(weights(query, key, scale, bias), label_rows(y))

    return twin


# written out


def by_matmul(x: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    query, key, value = heads(x)
    scores = query * DEPTH**-0.5 @ key.transpose(-2, -1) + bias
    return joined(F.dropout(scores.softmax(-1), 0.1) @ value)


def by_bmm(x: Tensor) -> Tensor:
    query, key, value = (part.flatten(0, 1) for part in heads(x))
    scores = torch.baddbmm(torch.zeros(query.shape[0], TOKENS, TOKENS), query, key.transpose(1, 2), alpha=DEPTH**-0.5)
    return joined(torch.bmm(F.softmax(scores, dim=2, dtype=torch.float32), value).unflatten(0, (-1, HEADS)))


def by_keys_first(x: Tensor) -> Tensor:
    """Scores (keys, queries), softmax over the first."""
    query, key, value = heads(x)
    weight = (key @ query.transpose(-2, -1) / DEPTH**0.5).softmax(-2)
    return joined((value.transpose(-2, -1) @ weight).transpose(-2, -1))


def by_hand(x: Tensor) -> Tensor:
    """Softmax written out: exp, over its sum."""
    query, key, value = heads(x)
    scores = torch.exp(query @ key.transpose(-2, -1) * DEPTH**-0.5)
    return joined(scores / scores.sum(-1, keepdim=True) @ value)


def by_hand_later(x: Tensor) -> Tensor:
    """The same, divided after the values are mixed, each head by its own sum."""
    query, key, value = (part[:, :1] for part in heads(x))
    scores = query @ key.transpose(-2, -1) * DEPTH**-0.5
    scores = (scores - scores.amax(-1, keepdim=True)).exp()
    return joined((scores @ value) / scores.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "function", slow_except((by_matmul, by_hand), (by_matmul, by_bmm, by_keys_first, by_hand)), ids=lambda f: f.__name__
)
def test_self_attention(function: Callable[[Tensor], Tensor]) -> None:
    probe = check(function, attention_twin(), SIZE)
    assert probe.operation("matmul", "bmm") is Operation.SPATIAL_MIX


def test_softmax_divided_out_at_the_end() -> None:
    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        return mixed(weights(query[:, :1], key[:, :1]), label_rows(y), DEPTH)

    check(by_hand_later, twin, SIZE)


def test_bias_and_mask_are_part_of_the_weights() -> None:
    bias = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))
    check(lambda x, bias: by_matmul(x, bias), attention_twin(bias.detach()), SIZE, bias=bias)
    hidden = torch.zeros(TOKENS, TOKENS).masked_fill(torch.rand(TOKENS, TOKENS) < 0.3, -1e4)
    check(lambda x, bias: by_matmul(x, bias), attention_twin(hidden), SIZE, bias=hidden)


def test_masked_fill_of_scores() -> None:
    hidden = torch.rand(TOKENS, TOKENS) < 0.4

    def function(x: Tensor, hidden: Tensor) -> Tensor:
        query, key, value = heads(x)
        scores = (query @ key.transpose(-2, -1) * DEPTH**-0.5).masked_fill(hidden, -1e4)
        return joined(scores.softmax(-1) @ value)

    check(function, attention_twin(-1e4 * hidden), SIZE, hidden=hidden)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Axis orders of query, key, scores, value and output of an attention by einsum, and letters."""
    names = dict(zip("bhnmdg", draw(st.permutations(ascii_lowercase))[:6], strict=True))
    orders = {part: "".join(draw(st.permutations(axes))) for part, axes in PARTS.items()}
    swaps = draw(st.tuples(st.booleans(), st.booleans()))
    return {**orders, "swaps": swaps, "rename": str.maketrans(names)}


PARTS = {"query": "bhnd", "key": "bhmd", "scores": "bhnm", "value": "bhmg", "out": "bhng"}


@pytest.mark.slow
@several(10)
@given(layouts())
def test_attention_by_einsum_in_any_layout(drawn: dict[str, Any]) -> None:
    def formula(one: str, other: str, out: str, swap: bool) -> str:
        terms = (drawn[other], drawn[one]) if swap else (drawn[one], drawn[other])
        return f"{','.join(terms)}->{drawn[out]}".translate(drawn["rename"])

    def product(one: Tensor, other: Tensor, text: str, swap: bool) -> Tensor:
        return torch.einsum(text, *((other, one) if swap else (one, other)))

    def function(x: Tensor) -> Tensor:
        query, key, value = (
            part.permute([PARTS[name].index(a) for a in drawn[name]])
            for part, name in zip(heads(x), ("query", "key", "value"), strict=True)
        )
        first, second = drawn["swaps"]
        scores = product(query * DEPTH**-0.5, key, formula("query", "key", "scores", first), first)
        weight = scores.softmax(drawn["scores"].index("m"))
        return product(weight, value, formula("scores", "value", "out", second), second)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        rows = attention_twin()(y, x).unflatten(2, (HEADS, DEPTH)).permute(0, 2, 1, 3)
        return rows.permute(["bhng".index(a) for a in drawn["out"]])

    check(function, twin, SIZE, {"einsum": Operation.SPATIAL_MIX})


@pytest.mark.parametrize(("fused", "shift"), slow_except([(True, 1)], product((True, False), (0, 1))))
def test_attention_in_windows(shift: int, fused: bool) -> None:
    """Swin: windows merged with the batch, cyclic shift, and a mask that keeps torn windows apart."""
    size = (3 * HEADS * DEPTH, 4, 4)
    regions = torch.zeros(1, 1, 4, 4)
    regions[..., 4 - shift :, :] += 1
    regions[..., :, 4 - shift :] += 2

    def cut(x: Tensor) -> Tensor:
        x = x.roll((-shift, -shift), (2, 3))
        return x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, x.shape[1])

    def back(x: Tensor) -> Tensor:
        x = x.view(-1, 2, 2, 2, 2, x.shape[-1]).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return x.roll((shift, shift), (2, 3))

    region = cut(regions)[..., 0] if shift else torch.zeros(4, 4)
    mask = -100.0 * (region[:, None] != region[:, :, None])

    def function(x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = cut(x).view(-1, 4, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        if fused:
            bias = mask.unsqueeze(1).expand(-1, HEADS, -1, -1).repeat(x.shape[0], 1, 1, 1)
            return back(joined(F.scaled_dot_product_attention(query, key, value, bias)))
        scores = query * DEPTH**-0.5 @ key.transpose(-2, -1)
        scores = (scores.view(-1, 4, HEADS, 4, 4) + mask[:, None]).view(-1, HEADS, 4, 4)
        return back(joined(scores.softmax(-1) @ value))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = cut(x).view(-1, 4, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        bias = mask.repeat(len(y), 1, 1)[:, None]
        return back(mixed(weights(query, key, bias=bias), cut(y)[..., 0]))

    check(function, twin, size, mask=mask)


def test_cross_attention_to_pooled_keys() -> None:
    """PVT: keys and values on a coarser grid."""

    def function(x: Tensor) -> Tensor:
        query, _, _ = heads(x)
        _, key, value = heads(F.avg_pool2d(x, (3, 2)))
        return joined(F.scaled_dot_product_attention(query, key, value))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, _, _ = heads(x)
        _, key, _ = heads(F.avg_pool2d(x, (3, 2)))
        return mixed(weights(query, key), F.avg_pool2d(y[:, :1], (3, 2)).flatten(1))

    check(function, twin, SIZE, SPATIAL)


@pytest.mark.parametrize("fused", [True, False])
def test_a_class_token_as_the_only_query(fused: bool) -> None:
    """CaiT: the class token asks itself and all tokens."""
    token = nn.Parameter(torch.randn(1, 1, SIZE[0]))

    def parts(x: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        sequence = torch.cat((token.expand(x.shape[0], -1, -1), tokens(x)), 1)
        projected = sequence.view(x.shape[0], -1, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        return projected[0][:, :, :1], projected[1], projected[2]

    def function(x: Tensor, token: Tensor) -> Tensor:
        query, key, value = parts(x, token)
        if fused:
            return joined(F.scaled_dot_product_attention(query, key, value))
        return joined((query @ key.mT * DEPTH**-0.5).softmax(-1) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = parts(x, token.double())
        return mixed(weights(query, key), torch.cat((y.mean((1, 2, 3))[:, None], label_rows(y)), 1))

    check(function, twin, SIZE, token=token)


@pytest.mark.parametrize("kind", slow_except(("both",), ("fused", "matmul", "both")))
def test_attention_pooling_by_a_learned_query(kind: str) -> None:
    """A query that is a parameter: each of its rows sees all tokens."""
    latent = nn.Parameter(torch.randn(1, HEADS, 2, DEPTH))

    def function(x: Tensor, latent: Tensor) -> Tensor:
        _, key, value = heads(x)
        query = latent.expand(x.shape[0], -1, -1, -1)
        pooled = {
            "fused": F.scaled_dot_product_attention(query, key, value),
            "matmul": (query @ key.mT * 0.5).softmax(-1) @ value,
        }
        return joined(pooled[kind] if kind in pooled else pooled["fused"] + pooled["matmul"])

    def twin(y: Tensor, x: Tensor) -> Tensor:
        _, key, _ = heads(x)
        query = latent.double().expand(len(x), -1, -1, -1)
        one, other = (mixed(weights(query, key, scale), label_rows(y)) for scale in (DEPTH**-0.5, 0.5))
        return {"fused": one, "matmul": other, "both": (one + other) / 2}[kind]

    check(function, twin, SIZE, latent=latent)


def test_attention_pooling_by_scores() -> None:
    """A score for each token, softmax over tokens, the weighted sum."""
    score = nn.Linear(SIZE[0], 1)

    def function(x: Tensor, score: nn.Module) -> Tensor:
        return score(tokens(x)).softmax(1).transpose(1, 2) @ tokens(x)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        weight = (tokens(x) @ score.weight.double().T + score.bias.double()).softmax(1).transpose(1, 2)
        return mixed(weight, label_rows(y), SIZE[0])

    check(function, twin, SIZE, score=score)


# heads


def test_talking_heads() -> None:
    """Heads mixed by a linear layer before and after softmax: |W| averaged over heads, rows normalised."""
    before, after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def talk(query: Tensor, key: Tensor, before: nn.Module, after: nn.Module) -> Tensor:
        scores = before((query @ key.mT * DEPTH**-0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def function(x: Tensor, before: nn.Module, after: nn.Module) -> Tensor:
        query, key, value = heads(x)
        return joined(talk(query, key, before, after) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = (part.float() for part in heads(x))
        return mixed(normalised(talk(query, key, before, after).double().abs().mean(1)), label_rows(y))

    check(function, twin, SIZE, {"matmul": Operation.SPATIAL_MIX}, before=before, after=after)


def test_talking_heads_by_convolution() -> None:
    """The same by a 1x1 convolution over heads (DeepViT), with a normalisation."""
    mixer, norm = nn.Conv2d(HEADS, HEADS, 1), nn.BatchNorm2d(HEADS).eval()

    def function(x: Tensor, mixer: nn.Module, norm: nn.Module) -> Tensor:
        query, key, value = heads(x)
        return joined(norm(mixer((query @ key.mT * DEPTH**-0.5).softmax(-1))) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = (part.float() for part in heads(x))
        weight = norm(mixer((query @ key.mT * DEPTH**-0.5).softmax(-1)))
        return mixed(normalised(weight.double().abs().mean(1)), label_rows(y))

    check(function, twin, SIZE, {"conv2d": Operation.WEIGHT, "matmul": Operation.SPATIAL_MIX}, mixer=mixer, norm=norm)


def test_gated_positional_attention() -> None:
    """ConViT: a gate between content and position, normalised again."""
    place, gate = nn.Parameter(torch.randn(1, HEADS, TOKENS, TOKENS)), nn.Parameter(torch.randn(1, HEADS, 1, 1))

    def blend(query: Tensor, key: Tensor, place: Tensor, gate: Tensor) -> Tensor:
        weight = (query @ key.mT * DEPTH**-0.5).softmax(-1)
        weight = (1.0 - gate.sigmoid()) * weight + gate.sigmoid() * place.softmax(-1)
        return weight / weight.sum(-1, keepdim=True)

    def function(x: Tensor, place: Tensor, gate: Tensor) -> Tensor:
        query, key, value = heads(x)
        return joined(blend(query, key, place, gate) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        return mixed(blend(query, key, place.double(), gate.double()).mean(1), label_rows(y))

    check(function, twin, SIZE, {"matmul": Operation.SPATIAL_MIX}, place=place, gate=gate)


def test_cosine_attention() -> None:
    """Swin v2: normalised query and key, a learned scale for each head."""
    scale = nn.Parameter(torch.full((HEADS, 1, 1), 2.0))

    def function(x: Tensor, scale: Tensor) -> Tensor:
        query, key, value = heads(x)
        scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        return joined((scores * scale.clamp(max=4.6).exp()).softmax(-1) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        unit = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        return mixed(weights(*unit, scale=float(torch.tensor(2.0).exp())), label_rows(y))

    check(function, twin, SIZE, {"matmul": Operation.SPATIAL_MIX}, scale=scale)


@pytest.mark.parametrize("power", [1, 2])
def test_attention_without_softmax(power: int) -> None:
    """Weights that may be negative or unnormalised: |W| averaged over heads, rows normalised."""

    def function(x: Tensor) -> Tensor:
        query, key, value = heads(x)
        return joined((query @ key.mT).relu().add(0.1).pow(power).div(TOKENS) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        return mixed(normalised(((query @ key.mT).relu() + 0.1).pow(power).mean(1)), label_rows(y))

    check(function, twin, SIZE, {"matmul": Operation.SPATIAL_MIX})


@pytest.mark.slow
def test_products_of_weights_are_weights() -> None:
    """Attention through agents, multiplied out before it meets the values."""

    def product(x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        agents = query.unflatten(2, (4, 3)).mean(3)
        return (query @ agents.mT).softmax(-1) @ (agents @ key.mT).softmax(-1)

    check(
        lambda x: joined(product(x) @ heads(x)[2]),
        lambda y, x: mixed(product(x).mean(1), label_rows(y)),
        SIZE,
        {"matmul": Operation.SPATIAL_MIX},
    )


@pytest.mark.slow
def test_attention_through_agents() -> None:
    """The same from right to left: two mixings, one after the other."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, _ = heads(x)
        agents = query.unflatten(2, (4, 3)).mean(3)
        return (query @ agents.mT).softmax(-1), (agents @ key.mT).softmax(-1)

    def function(x: Tensor) -> Tensor:
        spread, gather = parts(x)
        return joined(spread @ (gather @ heads(x)[2]))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        spread, gather = (part.mean(1) for part in parts(x))
        return mixed(spread, mixed(gather, label_rows(y))[..., 0])

    check(function, twin, SIZE)


def test_decomposed_relative_positions() -> None:
    """Biases made from the query (MViT, SAM) are part of the weights."""
    down, across = nn.Parameter(torch.randn(3, 3, DEPTH)), nn.Parameter(torch.randn(4, 4, DEPTH))

    def scores(query: Tensor, key: Tensor, down: Tensor, across: Tensor) -> Tensor:
        grid = query.unflatten(2, (3, 4))
        of_rows = torch.einsum("bnhwc,hkc->bnhwk", grid, down)
        of_columns = torch.einsum("bnhwc,wkc->bnhwk", grid, across)
        plain = (query @ key.mT).view(-1, HEADS, 3, 4, 3, 4)
        return (plain + of_rows[..., None] + of_columns[..., None, :]).view(-1, HEADS, TOKENS, TOKENS).softmax(-1)

    def function(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        query, key, value = heads(x)
        return joined(scores(query, key, down, across) @ value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        return mixed(scores(query, key, down.double(), across.double()).mean(1), label_rows(y))

    check(function, twin, SIZE, {"matmul": Operation.SPATIAL_MIX}, down=down, across=across)


@pytest.mark.parametrize("fused", [True, False])
def test_padding_under_attention_has_no_label(fused: bool) -> None:
    """Tokens padded to whole windows are keys, but nothing of them reaches the output."""

    def padded(x: Tensor) -> Tensor:
        return F.pad(tokens(x), (0, 0, 0, 4)).view(-1, 8, x.shape[1])

    def function(x: Tensor) -> Tensor:
        query, key, value = padded(x).view(-1, 8, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        if fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.mT * DEPTH**-0.5).softmax(-1) @ value
        return joined(mixed).view(-1, 16, HEADS * DEPTH)[:, :TOKENS]

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = padded(x).view(-1, 8, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        rows, seen = (F.pad(r, (0, 4)).view(-1, 8) for r in (label_rows(y), torch.ones_like(label_rows(y))))
        sums = [mixed(weights(query, key), r).reshape(-1, 16, HEADS * DEPTH)[:, :TOKENS] for r in (rows, seen)]
        return sums[0] / sums[1]

    check(function, twin, SIZE)


def test_attention_to_neighbours() -> None:
    """Keys and values of a 3x3 neighbourhood for each query, cut out by unfold."""
    size = (3 * DEPTH, 5, 6)

    def parts(x: Tensor) -> tuple[Tensor, ...]:
        query, key, value = x.chunk(3, 1)
        near = [F.unfold(part, 3).view(-1, DEPTH, 9, TOKENS).permute(0, 3, 2, 1) for part in (key, value)]
        return query[..., 1:-1, 1:-1].flatten(2).transpose(1, 2).unsqueeze(2), *near

    def function(x: Tensor) -> Tensor:
        query, key, value = parts(x)
        return ((query @ key.mT).softmax(-1) @ value).squeeze(2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = parts(x)
        near = F.unfold(y[:, :1], 3).transpose(1, 2)
        return ((query @ key.mT).softmax(-1).squeeze(2) * near).sum(-1, keepdim=True).expand(-1, -1, DEPTH)

    check(function, twin, size, {"matmul": Operation.SPATIAL_MIX})


def test_attention_over_channels_is_channel_mixing() -> None:
    """XCiT: d x d weights leave every label in place."""

    def function(x: Tensor) -> Tensor:
        query, key, value = (part.transpose(-2, -1) for part in heads(x))
        weight = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)).softmax(-1)
        return (weight @ value).flatten(1, 2)

    check(
        function,
        lambda y, x: label_rows(y).unsqueeze(1).expand(-1, HEADS * DEPTH, -1),
        SIZE,
        {"matmul": Operation.CHANNEL_MIX},
    )


@pytest.mark.slow
def test_fused_attention_over_channels_is_channel_mixing() -> None:
    """The same with channels in place of tokens in a fused attention (DaViT)."""

    def function(x: Tensor) -> Tensor:
        query, key, value = (part.transpose(-2, -1) for part in heads(x))
        return F.scaled_dot_product_attention(query, key, value).flatten(1, 2)

    check(
        function,
        lambda y, x: label_rows(y).unsqueeze(1).expand(-1, HEADS * DEPTH, -1),
        SIZE,
        {"scaled_dot_product_attention": Operation.CHANNEL_MIX},
    )


# fused attention


def fused(x: Tensor, **options: Any) -> Tensor:
    return joined(F.scaled_dot_product_attention(*heads(x), **options))


@pytest.mark.parametrize(
    "shape",
    [
        (HEADS, TOKENS, TOKENS),
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((TOKENS, TOKENS), (1, 1, TOKENS, TOKENS))),
        pytest.param((1, 1, 1, TOKENS), marks=pytest.mark.slow),
    ],
)
def test_fused_attention_with_a_float_mask(shape: tuple[int, ...]) -> None:
    bias = nn.Parameter(torch.randn(shape))
    check(lambda x, bias: fused(x, attn_mask=bias), attention_twin(bias.detach()), SIZE, SPATIAL, bias=bias)


@pytest.mark.parametrize("shape", [(TOKENS, TOKENS), (1, HEADS, TOKENS, TOKENS), (1, 1, 1, TOKENS)])
def test_fused_attention_with_a_bool_mask(shape: tuple[int, ...]) -> None:
    allowed = torch.rand(shape) < 0.6
    allowed[..., 0] = True
    bias = torch.zeros(shape).masked_fill(~allowed, -torch.inf)
    check(lambda x, mask: fused(x, attn_mask=mask), attention_twin(bias), SIZE, SPATIAL, mask=allowed)


def test_fused_attention_with_a_mask_from_the_image() -> None:
    """A separate mask for every sample and head."""

    def mask(x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        return query.amax(-1, keepdim=True) > key.amin(-1, keepdim=True).transpose(-2, -1)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        bias = torch.zeros(mask(x).shape).masked_fill(~mask(x), -torch.inf)
        return mixed(weights(query, key, bias=bias), label_rows(y))

    check(lambda x: fused(x, attn_mask=mask(x)), twin, SIZE, SPATIAL)


def test_causal_fused_attention() -> None:
    bias = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
    check(lambda x: fused(x, is_causal=True), attention_twin(bias), SIZE, SPATIAL)


@pytest.mark.parametrize("scale", slow_except((2.5,), (0.1, 1.0, 2.5)))
def test_scale_of_fused_attention(scale: float) -> None:
    check(lambda x: fused(x, scale=scale), attention_twin(scale=scale), SIZE, SPATIAL)


def test_fused_attention_before_dropout() -> None:
    check(lambda x: fused(x, dropout_p=0.5), attention_twin(), SIZE, SPATIAL)


@pytest.mark.parametrize(("repeated", "groups"), slow_except([(False, 2)], product((True, False), (1, 2))))
def test_grouped_queries(groups: int, repeated: bool) -> None:
    """Fewer heads of keys and values than of queries."""
    depth, count = 2, 4
    size = ((count + 2 * groups) * depth, 3, 4)

    def parts(x: Tensor) -> list[Tensor]:
        split = tokens(x).split([count * depth, groups * depth, groups * depth], -1)
        return [part.unflatten(2, (-1, depth)).transpose(1, 2) for part in split]

    def function(x: Tensor) -> Tensor:
        query, key, value = parts(x)
        if repeated:
            key, value = (part.repeat_interleave(count // groups, 1) for part in (key, value))
        return joined(F.scaled_dot_product_attention(query, key, value, enable_gqa=not repeated))

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = parts(x)
        weight = weights(query, key.repeat_interleave(count // groups, 1), depth**-0.5)
        return mixed(weight, label_rows(y), count * depth)

    check(function, twin, size, SPATIAL)


@pytest.mark.parametrize("lead", [(), (1,), (2, 1)])
def test_fused_attention_with_any_leading_axes(lead: tuple[int, ...]) -> None:
    """No head axis, one, or several."""
    size = (3 * DEPTH, 3, 4)

    def function(x: Tensor) -> Tensor:
        parts = tokens(x).chunk(3, -1)
        query, key, value = (
            p.view(p.shape[0], *[1] * len(lead), *p.shape[1:]).expand(-1, *lead, -1, -1) for p in parts
        )
        return F.scaled_dot_product_attention(query, key, value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = (part[:, None] for part in tokens(x).chunk(3, -1))
        rows = mixed(weights(query, key), label_rows(y), DEPTH)
        return rows.view(len(y), *[1] * len(lead), TOKENS, DEPTH).expand(-1, *lead, -1, -1)

    check(function, twin, size, SPATIAL)


def test_rows_and_columns_of_a_map() -> None:
    """Axial attention: rows of the map are merged with the batch."""
    size = (3 * DEPTH, 3, 4)

    def function(x: Tensor) -> Tensor:
        query, key, value = x.permute(0, 2, 3, 1).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = x.permute(0, 2, 3, 1).chunk(3, -1)
        rows = [mixed(weights(query[:, None, i], key[:, None, i]), y[:, 0, i], DEPTH) for i in range(3)]
        return torch.stack(rows, 1)

    check(function, twin, size, SPATIAL)


def test_attention_to_learned_values_belongs_to_the_query() -> None:
    """A memory of parameters (external attention): what comes out is the query's."""
    memory = nn.Parameter(torch.randn(1, HEADS, 5, DEPTH))

    def function(x: Tensor, memory: Tensor) -> Tensor:
        query, _, _ = heads(x)
        stored = memory.expand(x.shape[0], -1, -1, -1)
        return joined(F.scaled_dot_product_attention(query, stored, stored))

    check(function, lambda y, x: tokens(y)[..., : HEADS * DEPTH], SIZE, memory=memory)


def test_external_attention_by_linear_layers() -> None:
    """The same written out: keys and values are weights of linear layers, so it mixes channels."""

    def function(x: Tensor, keys: nn.Module, values: nn.Module) -> Tensor:
        return values(keys(tokens(x)).softmax(-1))

    parts = {"keys": nn.Linear(SIZE[0], 5), "values": nn.Linear(5, SIZE[0])}
    check(function, lambda y, x: tokens(y), SIZE, {"linear": Operation.CHANNEL_MIX}, **parts)


@pytest.mark.parametrize(
    ("training", "batch_first", "need_weights"),
    slow_except([(False, True, False)], product(*[(True, False)] * 3)),
)
def test_multihead_attention_module(need_weights: bool, batch_first: bool, training: bool) -> None:
    """torch.nn.MultiheadAttention equals its own weights."""
    width = 6
    module = nn.MultiheadAttention(width, HEADS, batch_first=batch_first).train(training)

    def function(x: Tensor, module: nn.Module) -> Tensor:
        sequence = tokens(x) if batch_first else tokens(x).transpose(0, 1)
        return module(sequence, sequence, sequence, need_weights=need_weights)[0]

    def twin(y: Tensor, x: Tensor) -> Tensor:
        sequence = tokens(x).float() if batch_first else tokens(x).float().transpose(0, 1)
        weight = module(sequence, sequence, sequence, need_weights=True)[1]
        rows = mixed(weight, label_rows(y), width)
        return rows if batch_first else rows.transpose(0, 1)

    check(function, twin, (width, 3, 4), module=module)


# linear attention, q(kᵀv)


def linear_twin(feature: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """|q|·|k|ᵀ as a dense matrix, averaged over heads, rows normalised."""

    def twin(y: Tensor, x: Tensor) -> Tensor:
        query, key, _ = heads(x)
        dense = feature(query, -1).abs() @ feature(key, -2).abs().transpose(-2, -1)
        return mixed(normalised(dense.mean(1)), label_rows(y))

    return twin


def with_normaliser(x: Tensor) -> Tensor:
    """A positive feature map and the sum of its weights."""
    query, key, value = heads(x)
    query, key = query.relu() + 0.1, key.relu() + 0.1
    total = query @ key.sum(-2, keepdim=True).transpose(-2, -1)
    return joined(query @ (key.transpose(-2, -1) @ value) / total)


def with_ones(x: Tensor) -> Tensor:
    """The normaliser as one more channel of the value (EfficientViT)."""
    query, key, value = heads(x)
    query, key = query.relu() + 0.1, key.relu() + 0.1
    out = query @ (key.transpose(-2, -1) @ F.pad(value, (0, 1), value=1.0))
    return joined(out[..., :-1] / (out[..., -1:] + 1e-9))


def values_first(x: Tensor) -> Tensor:
    """Transposed: (vᵀk)qᵀ, channels before tokens (EfficientViT)."""
    query, key, value = (part.transpose(-2, -1) for part in heads(x))
    query, key = query.relu() + 0.1, key.relu() + 0.1
    out = torch.matmul(torch.matmul(F.pad(value, (0, 0, 0, 1), value=1.0), key.transpose(-1, -2)), query)
    return joined((out[:, :, :-1] / out[:, :, -1:]).transpose(-2, -1))


def with_softmax(x: Tensor) -> Tensor:
    """Softmax of keys over tokens and of queries over channels (efficient attention)."""
    query, key, value = heads(x)
    return joined(query.softmax(-1) @ (key.softmax(-2).transpose(-2, -1) @ value))


def with_key_softmax(x: Tensor) -> Tensor:
    """Softmax of keys over tokens alone (factorised attention of CoaT)."""
    query, key, value = heads(x)
    return joined(query @ torch.einsum("bhnk,bhnv->bhkv", key.softmax(2), value))


def by_einsum(x: Tensor) -> Tensor:
    """Two einsums, with the head axis last and no normaliser."""
    query, key, value = (part.permute(0, 2, 3, 1) for part in heads(x))
    context = torch.einsum("bmdh,bmeh->hbed", key.relu() + 0.1, value)
    return torch.einsum("bndh,hbed->bhne", query.relu() + 0.1, context).transpose(1, 2).flatten(2)


def positive(x: Tensor, axis: int) -> Tensor:
    return x.relu() + 0.1


@pytest.mark.parametrize(
    ("function", "feature"),
    [
        pytest.param(with_normaliser, positive, marks=pytest.mark.slow),
        pytest.param(with_ones, positive, marks=pytest.mark.slow),
        (values_first, positive),
        pytest.param(with_softmax, lambda x, axis: x.softmax(axis), marks=pytest.mark.slow),
        (with_key_softmax, lambda x, axis: x.softmax(axis) if axis == -2 else x),
        pytest.param(by_einsum, positive, marks=pytest.mark.slow),
    ],
    ids=lambda f: f.__name__,
)
def test_linear_attention(function: Callable[[Tensor], Tensor], feature: Callable[[Tensor, int], Tensor]) -> None:
    probe = check(function, linear_twin(feature), SIZE)
    assert probe.operation("matmul", "einsum") is Operation.SPATIAL_MIX


def test_a_context_by_itself() -> None:
    """kᵀv without a query (bilinear pooling): |k| over tokens, averaged over heads."""

    def function(x: Tensor) -> Tensor:
        _, key, value = heads(x)
        return (key.softmax(-2).transpose(-2, -1) @ value).flatten(1, 2)

    def twin(y: Tensor, x: Tensor) -> Tensor:
        _, key, _ = heads(x)
        label = (key.softmax(-2).mean(1) * label_rows(y)[..., None]).sum(1)
        return label[:, None, :, None].expand(-1, HEADS, -1, DEPTH).flatten(1, 2)

    check(function, twin, SIZE)


def test_scores_alone_carry_no_label() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, _ = heads(x)
        return x, (query @ key.transpose(-2, -1)).softmax(-1)

    assert Probe(function, SIZE).roles == [Role.CONTENT, Role.WEIGHT]
