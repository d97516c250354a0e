"""Flex attention: any score function and block mask, its labels by the operator itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models.attention_ways import local
from rule_harness import Probe, check, label_rows, tokens
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tlfx import CaptureError, Operation, RuleError

SIZE = (8, 3, 4)
TOKENS = 12
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def heads(x: Tensor) -> Tensor:
    """(batch, 2 heads, tokens, 4)."""
    return tokens(x).unflatten(-1, (2, 4)).transpose(1, 2)


def by_distance(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return score - 0.3 * (h + 1) * (q - k).abs()


def everything(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= 0


def full(queries: int, keys: int) -> BlockMask:
    return create_block_mask(everything, None, None, queries, keys, device="cpu")


def twin(y: Tensor, x: Tensor) -> Tensor:
    """Eq. 7 and 9: the weights written out, averaged over heads."""
    places = torch.arange(TOKENS)
    apart = (places[:, None] - places).abs()
    scores = heads(x) @ heads(x).transpose(2, 3) / 2 - 0.3 * torch.tensor([1.0, 2.0]).view(2, 1, 1) * apart
    weights = scores.masked_fill(apart >= 4, -torch.inf).softmax(-1).mean(1)
    return (weights @ label_rows(y).unsqueeze(-1)).unsqueeze(1).expand(-1, 2, -1, 4)


def test_flex_attention() -> None:
    mask = create_block_mask(local, None, None, TOKENS, TOKENS, device="cpu")
    check(
        lambda x: flex_attention(heads(x), heads(x), heads(x), score_mod=by_distance, block_mask=mask),
        twin,
        SIZE,
        {"flex_attention": Operation.SPATIAL_MIX},
    )


def test_flex_attention_in_windows() -> None:
    """Windows merged with the batch: rows of three tokens, four of them an image."""

    def cut(x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 4)).permute(0, 4, 1, 3, 2).flatten(0, 1)

    def windows(y: Tensor, x: Tensor) -> Tensor:
        weights = (cut(x) @ cut(x).transpose(2, 3) / 2).softmax(-1).mean(1)
        return (weights @ cut(y)[:, 0, :, :1]).unsqueeze(1).expand(-1, 2, -1, 4)

    mask = full(3, 3)
    check(lambda x: flex_attention(cut(x), cut(x), cut(x), block_mask=mask), windows, SIZE)


def test_flex_attention_to_one_label_mixes_channels() -> None:
    mask = full(5, 3)
    token = nn.Parameter(torch.randn(1, 2, 5, 4), requires_grad=False)

    def function(x: Tensor, token: Tensor) -> Tensor:
        pooled = heads(x).mean(2, keepdim=True).expand(-1, -1, 3, -1)
        return flex_attention(token.expand(x.shape[0], -1, -1, -1), pooled, pooled, block_mask=mask)

    check(function, lambda y, x: y.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 2, 5, 4), SIZE, token=token)


def test_flex_attention_of_heads_with_different_labels_is_an_error() -> None:
    mask = full(TOKENS, TOKENS)

    def function(x: Tensor) -> Tensor:
        two = torch.stack((tokens(x), tokens(x).flip(1)), 1)
        return flex_attention(two, two, two, block_mask=mask)

    with pytest.raises(RuleError, match="heads or channels carry different labels"):
        Probe(function, SIZE)


@pytest.mark.parametrize(
    "function",
    [lambda x: flex_attention(heads(x), heads(x), heads(x)), torch.vmap(lambda x: x.softmax(0))],
    ids=["flex attention without a mask", "vmap"],
)
def test_a_vmap_is_refused_by_name(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"(?s)calls torch.vmap.*source: .*give it one, made by create_block_mask"):
        Probe(function, SIZE)
