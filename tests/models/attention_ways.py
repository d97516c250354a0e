"""Attention as user code writes it: PyTorch's own layers, and linear attention in the usual ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from models.entry import Entry

DIM = 32
HEADS = 4
CLASSES = 5


class Tokens(nn.Module):
    """A ViT around any layer that takes and gives tokens (batch, 16, dim): patches, positions, blocks, a head on the
    class token, the first patch or the mean."""

    def __init__(self, *layers: nn.Module, class_token: bool = False, first: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 8, 8)
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, DIM))
        self.first = class_token or first
        self.class_token = nn.Parameter(torch.randn(1, 1, DIM)) if class_token else None
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in layers)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x[:, 0] if self.first else x.mean(1))


class MultiHead(nn.Module):
    """``nn.MultiheadAttention``, its weights asked for or not, the batch first or second."""

    def __init__(self, need_weights: bool, batch_first: bool, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first, **settings)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.attention.batch_first else x.transpose(0, 1)
        out = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return out if self.attention.batch_first else out.transpose(0, 1)


class Encoder(nn.Module):
    """``nn.TransformerEncoder``."""

    def __init__(self, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, 2 * DIM, batch_first=batch_first, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)


class Decoder(nn.Module):
    """``nn.TransformerDecoder``: learned queries that look at the tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(DIM, HEADS, 2 * DIM, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.queries = nn.Parameter(torch.randn(1, 16, DIM))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.queries.expand(x.shape[0], -1, -1), x)


class Projected(nn.Module):
    """Queries, keys and values of several heads (batch, heads, tokens, channels), and a function of them."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.function(q, k, v).transpose(1, 2).flatten(2))


def near(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A relative position bias for flex attention."""
    return score - 0.1 * (q - k).abs()


def local(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Which keys a query sees."""
    return (q - k).abs() < 4


class Flex(nn.Module):
    """Flex attention with a score function and a block mask."""

    def __init__(self) -> None:
        super().__init__()
        self.projected = Projected(self.attend)
        self.mask = create_block_mask(local, None, None, 16, 16, device="cpu")

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flex_attention(q, k, v, score_mod=near, block_mask=self.mask)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.projected(x)


def elu_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear Transformer: φ(q)(φ(k)ᵀv) over φ(q)Σφ(k)."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.transpose(-2, -1) @ v)) / (q @ k.sum(-2).unsqueeze(-1) + 1e-6)


def einsum_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by einsum."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    context = torch.einsum("bhnd,bhne->bhde", k, v)
    scale = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(2)) + 1e-6)
    return torch.einsum("bhnd,bhde,bhn->bhne", q, context, scale)


def softmax_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Efficient attention: each side normalised by a softmax."""
    return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


def relu_linear_padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """EfficientViT: a column of ones at v gathers the normaliser in the same product."""
    q, k = q.relu(), k.relu()
    out = q @ (k.transpose(-2, -1) @ F.pad(v, (0, 1), value=1.0))
    return out[..., :-1] / (out[..., -1:] + 1e-6)


def causal_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal linear attention by a cumulative sum of outer products."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    context = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(2)
    return (q.unsqueeze(-2) @ context).squeeze(-2) / (q * k.cumsum(2)).sum(-1, keepdim=True)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two heads of keys and values for four of queries."""
    return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)


def linear_attentions() -> dict[str, Entry]:
    """Functions of queries, keys and values."""
    functions = (elu_linear, einsum_linear, softmax_linear, relu_linear_padded, causal_linear, grouped)
    return {f.__name__.replace("_", " "): around(partial(Projected, f)) for f in functions}


def around(*layers: Callable[[], nn.Module], **settings: Any) -> Entry:
    """Layers in a small ViT."""
    return Entry("torch", lambda: Tokens(*(layer() for layer in layers), **settings))


MULTI_HEAD = {
    f"MultiheadAttention, weights {asked}, batch {place}": around(
        *[partial(MultiHead, asked == "asked for", place == "first")] * 2, class_token=True
    )
    for asked in ("asked for", "not asked for")
    for place in ("first", "second")
}
ENTRIES = {
    **MULTI_HEAD,
    "MultiheadAttention with dropout and learned key": around(
        partial(MultiHead, False, True, dropout=0.1, add_bias_kv=True, add_zero_attn=True)
    ),
    "TransformerEncoder, batch first": around(partial(Encoder, True, False)),
    "TransformerEncoder, norm first": around(partial(Encoder, True, True), class_token=True),
    "TransformerEncoder, batch second": around(partial(Encoder, False, True)),
    "TransformerDecoder": around(Decoder),
    # PyTorch's flex attention has no gradient on the CPU.
    "flex attention, no gradients": Entry("torch", lambda: Tokens(Flex(), Flex(), first=True).requires_grad_(False)),
    **linear_attentions(),
}
