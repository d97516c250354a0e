"""The invariants that hold for every aligned model, as figures: each function returns the largest violation."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tlfx

BATCH = 3


@dataclass(frozen=True)
class Figures:
    """Violations of the invariants; 0 is perfect, and the first four must be exactly 0."""

    logits: float
    gradients: float
    buffers: float
    independence: float
    constant: float
    bounds: float
    swap: float
    linearity: float
    permutation: float

    def worst_label(self) -> float:
        """The largest violation among those that rounding may cause."""
        return max(self.constant, self.bounds, self.swap, self.linearity, self.permutation)

    def worst_exact(self) -> float:
        """The largest violation among those that must be zero."""
        return max(self.logits, self.gradients, self.buffers, self.independence)


def measure(model: nn.Module, size: tuple[int, ...], seed: int = 0) -> Figures:
    """All invariants of a model in training mode (batch permutation in evaluation mode), images (channels, *size)."""
    torch.manual_seed(seed)
    images = torch.randn(BATCH, *size)
    masks = [rectangles(BATCH, size[-2:], seed + i) for i in range(2)]
    plain, aligned = deepcopy(model).train(), tlfx.align(deepcopy(model).train())
    exact = _compare(plain, aligned, images, target(masks[0]))
    state = deepcopy(aligned.state_dict())

    def shares(mask: Tensor) -> Tensor:
        aligned.load_state_dict(state)
        torch.manual_seed(seed)
        return share(aligned, images, mask)

    one, other = shares(masks[0]), shares(masks[1])
    mixed = masks[0].clone()
    mixed[1:] = masks[1][1:]
    return Figures(
        *exact,
        independence=_largest(shares(mixed)[:1], one[:1]),
        constant=_largest(shares(torch.full_like(masks[0], 0.3)), torch.full_like(one, 0.3)),
        bounds=max(-one.min().item(), one.max().item() - 1, 0.0),
        swap=_largest(shares(1 - masks[0]), 1 - one),
        linearity=_largest(shares(0.3 * masks[0] + 0.7 * masks[1]), 0.3 * one + 0.7 * other),
        permutation=_permutation(aligned.eval(), images, masks[0]),
    )


def rectangles(batch: int, size: tuple[int, ...], seed: int) -> Tensor:
    """CutMix masks (batch, 1, *size) with one rectangle of the second image each."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 1, *size)
    for sample in mask:
        (top, left), (height, width) = (
            (torch.rand(2, generator=generator) * 0.6 * torch.tensor(size)).int().tolist() for _ in range(2)
        )
        sample[:, top : top + height + 1, left : left + width + 1] = 0.0
    return mask


def target(mask: Tensor) -> tlfx.MixedTarget:
    """A target whose soft label of class 0 is the share of the first image."""
    zeros = torch.zeros(len(mask), dtype=torch.int64)
    return tlfx.MixedTarget(first=zeros, second=zeros + 1, mask=mask, num_classes=2, smoothing=0.0)


@torch.no_grad()
def share(aligned: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
    """Share of the first image at every position of every output, (batch, positions)."""
    _, soft = aligned(images, target(mask))
    leaves = [leaf for leaf in tree_leaves(soft) if leaf is not None]
    picked = [leaf.select(_class_axis(leaf), 0).reshape(len(images), -1) for leaf in leaves]
    return torch.cat(picked, 1)


def _class_axis(soft: Tensor) -> int:
    """The axis of a soft target on which two classes sum to 1."""
    return next(a for a in range(1, soft.dim()) if soft.shape[a] == 2)


def _compare(plain: nn.Module, aligned: nn.Module, images: Tensor, mixed: tlfx.MixedTarget) -> tuple[float, ...]:
    """Logits, gradients and buffers of one training step, without and with alignment, same seed."""
    torch.manual_seed(1)
    expected = tree_leaves(plain(images))
    torch.manual_seed(1)
    found = tree_leaves(aligned(images, mixed)[0])
    for outputs in (expected, found):
        sum(o.float().square().mean() for o in outputs if isinstance(o, Tensor) and o.requires_grad).backward()
    pairs = zip(plain.parameters(), aligned.parameters(), strict=True)
    gradients = [(p.grad, q.grad) for p, q in pairs if p.grad is not None or q.grad is not None]
    return (
        max(_largest(a, b) for a, b in zip(expected, found, strict=True)),
        max((_largest(a, b) for a, b in gradients), default=0.0),
        max((_largest(a, b) for a, b in zip(plain.buffers(), aligned.buffers(), strict=True)), default=0.0),
    )


def _permutation(aligned: nn.Module, images: Tensor, mask: Tensor) -> float:
    order = torch.arange(len(images)).roll(1)
    return _largest(share(aligned, images[order], mask[order]), share(aligned, images, mask)[order])


def _largest(a: Tensor | None, b: Tensor | None) -> float:
    """Largest difference; infinite where one is missing or not finite and the other is."""
    if a is None or b is None:
        return float("inf")
    if torch.equal(a, b):
        return 0.0
    return float((a.double() - b.double()).abs().max().nan_to_num(float("inf")))
