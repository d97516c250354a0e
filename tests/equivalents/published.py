"""Layers of published models, as their repositories write them, next to the same functions by matrices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equivalents.spelling import CHANNELS, SIDE, TOKENS, Group, by_channel, in_heads, joined, tokens

__all__ = ["GROUPS"]

LONG, MERGED, KEPT = 20, 3, 6


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def additive(pool: Any) -> Any:
    """``pool(weights (batch, tokens, 1), queries)``, then a product with the keys, as in SwiftFormer."""

    def body(s: Any, z: Tensor) -> Tensor:
        query, key = unit(s.q(tokens(z))), unit(s.k(tokens(z)))
        scores = F.normalize(query @ s.weight * CHANNELS**-0.5, dim=1)
        out: Tensor = s.final(s.v(pool(scores, query) * key) + query)
        return out

    return body


def repeated(scores: Tensor, query: Tensor) -> Tensor:
    return (scores * query).sum(1).unsqueeze(1).repeat(1, TOKENS, 1)


SWIFTFORMER = Group(
    "additive attention of SwiftFormer",
    {"weight": nn.Parameter(torch.tensor([[0.7], [-1.2], [0.4], [1.5]])), "final": nn.Linear(CHANNELS, CHANNELS)},
).add(
    matrix=additive(lambda scores, query: scores.mT @ query),
    sum=additive(lambda scores, query: torch.sum(scores * query, dim=1, keepdim=True)),
    repeated=additive(repeated),
    einsum=additive(lambda scores, query: torch.einsum("bno,bnd->bod", scores, query)),
    einsum_of_a_product=additive(lambda scores, query: torch.einsum("bnd->bd", scores * query)[:, None]),
)


def separable(pool: Any, context_of: Any = None) -> Any:
    """``pool(weights (batch, 1, pixels, patches), keys)``, then a product with the values, as in MobileViTv2."""

    def body(s: Any, z: Tensor) -> Tensor:
        patches = F.unfold(z, 2, stride=2).unflatten(1, (CHANNELS, 4))
        query, key, value = s.qkv(patches).split([1, CHANNELS, CHANNELS], 1)
        context = pool(query.softmax(-1), key)
        out = s.out(value.relu() * (context_of or torch.Tensor.expand_as)(context, value))
        return tokens(F.fold(out.flatten(1, 2), (SIDE, SIDE), 2, stride=2))

    return body


MOBILEVIT = Group(
    "separable attention of MobileViTv2",
    {"qkv": nn.Conv2d(CHANNELS, 1 + 2 * CHANNELS, 1), "out": nn.Conv2d(CHANNELS, CHANNELS, 1)},
).add(
    matrix=separable(lambda weights, key: (key.transpose(1, 2) @ weights[:, 0, :, :, None]).transpose(1, 2)),
    sum=separable(lambda weights, key: torch.sum(key * weights, dim=-1, keepdim=True)),
    broadcast=separable(lambda weights, key: (weights * key).sum(-1, keepdim=True), lambda context, value: context),
    einsum=separable(lambda weights, key: torch.einsum("bopn,bdpn->bdp", weights, key)[..., None]),
)


def looked_at(s: Any, z: Tensor) -> Tensor:
    """How much the first token attends to each other, (batch, tokens - 1)."""
    query, key = in_heads(s.q(tokens(z))), in_heads(s.k(tokens(z)))
    return (query @ key.mT).softmax(-1)[:, :, 0, 1:].mean(1)


def chosen(s: Any, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The other tokens, how much each is looked at, and the places of those that are looked at least."""
    weights = looked_at(s, z)
    return tokens(z)[:, 1:], weights, weights.topk(TOKENS - 1 - KEPT, 1, largest=False)[1]


def evit(fuse: Any) -> Any:
    """Tokens that are looked at most, then ``fuse(the others, their weights)``, as in EViT."""

    def body(s: Any, z: Tensor) -> Tensor:
        others, weights, least = chosen(s, z)
        most = others.gather(1, by_channel(weights.topk(KEPT, 1)[1]))
        fused = fuse(others.gather(1, by_channel(least)), weights.gather(1, least))
        return torch.cat((tokens(z)[:, :1], most, fused), 1)

    return body


def evit_by_mask(s: Any, z: Tensor) -> Tensor:
    others, weights, least = chosen(s, z)
    most = others.gather(1, by_channel(weights.topk(KEPT, 1)[1]))
    rest = torch.zeros_like(weights).scatter(1, least, 1.0)
    return torch.cat((tokens(z)[:, :1], most, (others * (weights * rest)[..., None]).sum(1, keepdim=True)), 1)


EVIT = Group("a fused token of EViT").add(
    matrix=evit(lambda others, weights: weights[:, None] @ others),
    sum=evit(lambda others, weights: torch.sum(others * weights.unsqueeze(-1), dim=1, keepdim=True)),
    einsum=evit(lambda others, weights: torch.einsum("bn,bnc->bc", weights, others)[:, None]),
    mask=evit_by_mask,
)


def matched(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The places of even tokens that stay, of those that move, and of the odd ones that they move to (ToMe)."""
    even, odd = unit(t)[:, ::2], unit(t)[:, 1::2]
    best, goal = (even @ odd.mT).max(-1)
    order = best.argsort(-1, descending=True)
    return order[:, MERGED:].sort(1)[0], order[:, :MERGED], goal.gather(1, order[:, :MERGED])


def merge(x: Tensor, kept: Tensor, moving: Tensor, goal: Tensor) -> Tensor:
    even, odd = x[:, ::2], x[:, 1::2]
    width = x.shape[-1]

    def places(index: Tensor) -> Tensor:
        return index[..., None].expand(-1, -1, width)

    moved = odd.scatter_reduce(1, places(goal), even.gather(1, places(moving)), "sum")
    return torch.cat((even.gather(1, places(kept)), moved), 1)


def merge_by_matrix(x: Tensor, kept: Tensor, moving: Tensor, goal: Tensor) -> Tensor:
    """The same by the matrix of where tokens go, (batch, tokens after, tokens before)."""
    pairs = torch.eye(x.shape[1] // 2)
    even = torch.cat((pairs[kept], torch.zeros(len(x), x.shape[1] // 2, x.shape[1] // 2)), 1)
    arrived = F.one_hot(goal, x.shape[1] // 2).float().mT @ pairs[moving]
    even[:, kept.shape[1] :] = arrived
    odd = F.pad(pairs, (0, 0, kept.shape[1], 0)).expand_as(even)
    return torch.stack((even, odd), -1).flatten(2) @ x


def tome(merge_tokens: Any, merge_sizes: Any) -> Any:
    """Two merges, the second of them by the sizes of the first, as in ToMe."""

    def body(s: Any, z: Tensor) -> Tensor:
        x, size = tokens(z), torch.ones(len(z), TOKENS, 1)
        for _ in range(2):
            where = matched(x.detach()[:, : len(x[0]) // 2 * 2])
            last = x[:, len(x[0]) // 2 * 2 :], size[:, len(x[0]) // 2 * 2 :]
            even = x[:, : len(x[0]) // 2 * 2], size[:, : len(x[0]) // 2 * 2]
            merged, sizes = merge_tokens(even[0] * even[1], *where), merge_sizes(even[1], *where)
            x, size = torch.cat((merged / sizes, last[0]), 1), torch.cat((sizes, last[1]), 1)
        return x

    return body


TOME = Group("a merge of ToMe by sizes", {"factor": torch.ones(1)}).add(  # no products: a matrix normalises each merge
    matrix=tome(merge_by_matrix, merge_by_matrix),
    scatter_reduce=tome(merge, merge),
    sizes_by_matrix=tome(merge, merge_by_matrix),
)


def gated_scores(s: Any, z: Tensor) -> Tensor:
    """Weights (batch, 1, tokens) of instances: tanh times sigmoid, then a softmax (Ilse et al., 2018)."""
    t = tokens(z)
    scores: Tensor = s.weight_of(s.q(t).tanh() * s.k(t).sigmoid())
    return scores.transpose(2, 1).softmax(2)


def one_by_one(s: Any, z: Tensor) -> Tensor:
    """A bag at a time, as the paper's code takes them."""
    scores = gated_scores(s, z)
    return torch.stack([torch.mm(scores[i], tokens(z)[i]) for i in range(len(z))])


INSTANCES = Group("gated attention pooling of instances", {"weight_of": nn.Linear(CHANNELS, 1)}).add(
    matrix=lambda s, z: gated_scores(s, z) @ tokens(z),
    bmm=lambda s, z: torch.bmm(gated_scores(s, z), tokens(z)),
    sum=lambda s, z: (gated_scores(s, z).mT * tokens(z)).sum(1, keepdim=True),
    einsum=lambda s, z: torch.einsum("bin,bnc->bic", gated_scores(s, z), tokens(z)),
    parts=lambda s, z: (
        (gated_scores(s, z)[..., :5] @ tokens(z)[:, :5]) + (gated_scores(s, z)[..., 5:] @ tokens(z)[:, 5:])
    ),
)


def padded(z: Tensor) -> Tensor:
    """Tokens behind which there are others than those of the image, up to a fixed length."""
    return torch.cat((tokens(z), tokens(z)[:, : LONG - TOKENS] + 1), 1)


def present(x: Tensor) -> Tensor:
    """Which places of a padded sequence hold a token, (batch, LONG, 1)."""
    lengths = torch.full((len(x),), TOKENS)
    return (torch.arange(LONG)[None] < lengths[:, None])[..., None]


PADDED_MEAN = Group("the mean of padded tokens").add(
    matrix=lambda s, z: torch.full((1, TOKENS), 1 / TOKENS) @ tokens(z),
    mean=lambda s, z: padded(z)[:, :TOKENS].mean(1, keepdim=True),
    product=lambda s, z: (
        (padded(z) * present(z)).sum(1, keepdim=True) / present(z).sum(1, keepdim=True).clamp(min=1e-9)
    ),
    expanded=lambda s, z: (lambda m: ((padded(z) * m).sum(1) / m.sum(1).clamp(min=1e-9))[:, None])(
        present(z).expand(-1, -1, CHANNELS).float()
    ),
    masked_fill=lambda s, z: padded(z).masked_fill(~present(z), 0).sum(1, keepdim=True) / present(z).sum(1)[..., None],
)


def sampled(s: Any, z: Tensor, groups: int) -> Tensor:
    """Maps of channel groups in the batch, read at places that each chooses (batch · groups, channels, 2, 2)."""
    parts = z.reshape(groups * len(z), CHANNELS // groups, SIDE, SIDE)
    offset = s.offset(parts).tanh() / 4
    lines = torch.linspace(-0.5, 0.5, 2)
    places = torch.stack(torch.meshgrid(lines, lines, indexing="ij")[::-1], -1) + offset.permute(0, 2, 3, 1)
    return F.grid_sample(parts, places, mode="bilinear", align_corners=True)


def to_sampled(attend: Any) -> Any:
    """Attention of all tokens to sampled ones, as deformable attention in DAT; heads are in the batch or apart."""

    def body(s: Any, z: Tensor) -> Tensor:
        keys = tokens(sampled(s, z, 2).reshape(len(z), CHANNELS, 2, 2))
        query, key, value = in_heads(s.q(tokens(z))), in_heads(s.k(keys)), in_heads(s.v(keys))
        return tokens(z) + joined(attend(query, key, value))

    return body


def heads_in_the_batch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (x.mT.reshape(-1, x.shape[-1], x.shape[2]) for x in (query, key, value))  # (batch · heads, channels, n)
    weights = torch.einsum("bcm,bcn->bmn", q, k).softmax(2)
    return torch.einsum("bmn,bcn->bcm", weights, v).view(*query.shape[:2], -1, query.shape[2]).mT


SAMPLED = Group(
    "deformable attention with groups", {"offset": nn.Conv2d(CHANNELS // 2, 2, 3, stride=2, padding=1)}
).add(
    matrix=to_sampled(lambda q, k, v: (q @ k.mT).softmax(-1) @ v),
    heads_in_the_batch=to_sampled(heads_in_the_batch),
    fused=to_sampled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0)),
)

GROUPS = [SWIFTFORMER, MOBILEVIT, EVIT, TOME, INSTANCES, PADDED_MEAN, SAMPLED]
