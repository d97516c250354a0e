"""Programs that compute one function in several spellings, and the label matrix of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tlfx

__all__ = [
    "BATCH",
    "CHANNELS",
    "IMAGES",
    "SIDE",
    "TOKENS",
    "Group",
    "Program",
    "by_channel",
    "convolved",
    "followed",
    "in_heads",
    "joined",
    "label_matrices",
    "of_gates",
    "of_products",
    "tokens",
    "windows_of_3",
]

BATCH, CHANNELS, SIDE = 2, 4, 4
TOKENS = SIDE * SIDE
IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
Body = Callable[[Any, Tensor], Tensor]
"""Parts of the program and the features (batch, CHANNELS, SIDE, SIDE) of its stem to an output (batch, ...)."""


class Program(nn.Module):
    """A stem that keeps one token for each pixel, then bodies that read its features."""

    def __init__(self, bodies: Iterable[Body], parts: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.bodies = nn.Conv2d(3, CHANNELS, 1), list(bodies)
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        for name, part in copy.deepcopy(parts).items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [body(self, self.stem(images)) for body in self.bodies]


@dataclass(frozen=True)
class Group:
    """The spellings of one function; the first is the one that the others are compared with."""

    name: str
    parts: dict[str, Any] = field(default_factory=dict)
    spellings: dict[str, Body] = field(default_factory=dict)

    def add(self, **spellings: Body) -> Group:
        """Add spellings by name."""
        self.spellings.update(spellings)
        return self

    def plain(self, *names: str) -> Program:
        """The program of some spellings."""
        return Program([self.spellings[name] for name in names], self.parts)


def followed(name: str, parts: dict[str, Any], last: Callable[[Any, Tensor], Tensor], **spellings: Body) -> Group:
    """A group of spellings, each followed by ``last``, which takes the parts and the output of a spelling."""

    def then(body: Body) -> Body:
        return lambda s, z: last(s, body(s, z))

    return Group(name, parts).add(**{key: then(body) for key, body in spellings.items()})


def of_products(group: Group, *without: str) -> Group:
    """The spellings of a group, of tokens that are multiplied by a factor before."""

    def weighed(body: Any) -> Any:
        return lambda s, z: body(s, z * s.factor)

    factor = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) + 0.2
    bodies = {name: weighed(body) for name, body in group.spellings.items() if name not in without}
    return Group(f"{group.name} of products", {**group.parts, "factor": factor}).add(**bodies)


def of_gates(group: Group) -> Group:
    """The spellings of a group, of tokens that are multiplied by a gate of channels before."""

    def gated(body: Any) -> Any:
        return lambda s, z: body(s, z * z.mean((2, 3), keepdim=True).sigmoid())

    bodies = {name: gated(body) for name, body in group.spellings.items()}
    return Group(f"{group.name} of gated tokens", group.parts).add(**bodies)


def tokens(features: Tensor) -> Tensor:
    """(batch, channels, height, width) → (batch, tokens, channels)."""
    return features.flatten(2).transpose(1, 2)


def by_channel(index: Tensor) -> Tensor:
    """An index of tokens (batch, k) for each of their channels, (batch, k, channels)."""
    return index[..., None].expand(-1, -1, CHANNELS)


def in_heads(x: Tensor) -> Tensor:
    """(batch, tokens, channels) → (batch, 2 heads, tokens, channels of a head)."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """Heads side by side: (batch, heads, tokens, channels of a head) → (batch, tokens, channels)."""
    return x.transpose(1, 2).flatten(2)


def windows_of_3(features: Tensor) -> Tensor:
    """Windows of 3 × 3 tokens, (batch, channels, 9, tokens)."""
    return F.unfold(features, 3, padding=1).unflatten(1, (CHANNELS, 9))


def convolved(s: Any, x: Tensor) -> Tensor:
    """Tokens after the part ``conv``."""
    return tokens(s.conv(x.mT.unflatten(2, (SIDE, SIDE))))


def label_matrices(group: Group, *names: str, batch: int = BATCH, shared: bool = True) -> dict[str, Tensor]:
    """The part that each pixel has in the label of each row of the output, (batch, rows, TOKENS), by spelling.

    Spellings are captured together, which takes a fraction of the time. Every pixel is an image by itself, of a class
    by itself, so that one call gives whole matrices. Outputs and gradients must be those of the plain program, bit for
    bit. ``shared``: all samples have one mask, the same memory.
    """
    names = names or tuple(group.spellings)
    plain, images = group.plain(*names), IMAGES[:batch]
    aligned: Any = tlfx.align(copy.deepcopy(plain))
    mask = torch.eye(TOKENS).view(1, TOKENS, SIDE, SIDE).expand(batch, -1, -1, -1)
    labels = torch.arange(TOKENS).expand(batch, -1)
    target = tlfx.MixedTarget(
        labels=labels, mask=mask if shared else mask.contiguous(), num_classes=TOKENS, smoothing=0.0
    )
    expected = plain(images)
    outputs, soft = aligned(images, target)
    for one, other in zip(outputs, expected, strict=True):
        assert torch.equal(one, other)
    for values in (outputs, expected):
        torch.stack([x.square().sum() for x in values]).sum().backward()
    gradients = [[p.grad for p in model.parameters() if p.grad is not None] for model in (aligned, plain)]
    assert len(gradients[0]) == len(gradients[1])
    assert all(map(torch.equal, *gradients))
    matrices = [label.detach() for label in soft]
    assert_mixtures(aligned, images, matrices)
    return dict(zip(names, matrices, strict=True))


def assert_mixtures(aligned: Any, images: Tensor, matrices: list[Tensor]) -> None:
    """Labels of two mixed images are those of the matrices: linear in the mask of each sample, whatever its place in
    the batch."""
    mask = torch.rand(len(images), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    zeros = torch.zeros(len(images), dtype=torch.int64)
    target = tlfx.MixedTarget(first=zeros, second=zeros + 1, mask=mask.flip(0), num_classes=2, smoothing=0.0)
    with torch.no_grad():
        _, soft = aligned(images.flip(0), target)
    for label, matrix in zip(soft, matrices, strict=True):
        expected = torch.einsum("b...t,bt->b...", matrix, mask.flatten(1))
        torch.testing.assert_close(label.flip(0), torch.stack((expected, 1 - expected), -1), rtol=0, atol=1e-5)
