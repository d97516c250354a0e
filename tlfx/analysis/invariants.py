"""Measures the violation of each invariant by a model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import is_fake, tree_leaves
from tlfx.aligned import align
from tlfx.analysis.figures import INVARIANTS, Figures, Invariant
from tlfx.capture.describe import ATOMS, INTERNAL
from tlfx.capture.model_class import CHOSEN
from tlfx.capture.state.reach import Reach
from tlfx.errors import TlfxError
from tlfx.mix.target import MixedTarget, ShareTarget

__all__ = ["INVARIANTS", "Figures", "Invariant", "class_axis", "device_of", "measure", "rectangles", "share", "target"]

BATCH = 3
STEPS = 3


def measure(model: nn.Module, size: tuple[int, ...], seed: int = 0) -> Figures:
    """Measure all invariants of a model in training mode (batch permutation in evaluation mode).

    The model is copied; neither it nor the random state changes. ``size`` is the size of one image (channels, height,
    width) or clip (channels, frames, height, width). Raises TlfxError if the model cannot be aligned or does not take
    images of this size.

    >>> measure(nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8, 8)).passed
    True
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images = torch.randn(BATCH, *size, device=device_of(model))
        masks = [rectangles(BATCH, size[-2:], seed + i).to(images.device) for i in range(2)]
        plain, aligned = deepcopy(model).train(), align(deepcopy(model).train())
        exact = _compare(plain, aligned, images, target(masks[0]), seed + 1)
        return Figures(*exact, **_of_labels(aligned, images, masks, seed))


def rectangles(batch: int, size: tuple[int, ...], seed: int) -> Tensor:
    """CutMix masks (batch, 1, *size), each with one rectangle of the second image.

    >>> rectangles(2, (4, 4), seed=0).shape
    torch.Size([2, 1, 4, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 1, *size)
    for sample in mask:
        (top, left), (height, width) = (
            (torch.rand(2, generator=generator) * 0.6 * torch.tensor(size)).int().tolist() for _ in range(2)
        )
        sample[:, top : top + height + 1, left : left + width + 1] = 0.0
    return mask


def target(mask: Tensor) -> ShareTarget:
    """A target whose soft targets are the shares of the first and the second image.

    >>> target(torch.ones(2, 1, 4, 4)).first
    tensor([0, 0])
    """
    zeros = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    return ShareTarget(first=zeros, second=zeros + 1, mask=mask, num_classes=2, smoothing=0.0)


@torch.no_grad()
def share(aligned: nn.Module, images: Tensor, mask: Tensor) -> Tensor:
    """Share of the first image at every position of every output, (batch, positions).

    >>> model = align(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    >>> share(model, torch.rand(1, 3, 4, 4), torch.full((1, 1, 4, 4), 0.5))
    tensor([[0.5000]])
    """
    _, soft = aligned(images, target(mask))
    leaves = [leaf for leaf in tree_leaves(soft) if leaf is not None]
    picked = [leaf.select(class_axis(leaf), 0).reshape(len(images), -1) for leaf in leaves]
    return torch.cat(picked, 1)


def _of_labels(aligned: nn.Module, images: Tensor, masks: list[Tensor], seed: int) -> dict[str, float]:
    """Violations of the invariants of labels, by name."""
    state = deepcopy(aligned.state_dict())

    def shares(mask: Tensor) -> Tensor:
        """Shares of a mask, with the same state and random numbers for every mask."""
        aligned.load_state_dict(state)
        torch.manual_seed(seed)
        return share(aligned, images, mask)

    mask, second = masks
    one, other = shares(mask), shares(second)
    first_alone = torch.cat((mask[:1], second[1:]))
    return {
        "independence": _largest(shares(first_alone)[:1], one[:1]),
        "constant": _largest(shares(torch.full_like(mask, 0.3)), torch.full_like(one, 0.3)),
        "bounds": max(-one.min().item(), one.max().item() - 1, 0.0),
        "swap": _largest(shares(1 - mask), 1 - one),
        "linearity": _largest(shares(0.3 * mask + 0.7 * second), 0.3 * one + 0.7 * other),
        "permutation": _permutation(aligned.eval(), images, mask),
    }


def _compare(
    plain: nn.Module, aligned: nn.Module, images: Tensor, mixed: MixedTarget, seed: int
) -> tuple[float, float, float]:
    """Violations of outputs, of gradients, and of buffers and attributes after training steps with the same seeds."""
    try:
        expected = _train(lambda: plain(images), seed)
    except Exception as error:
        raise TlfxError(
            f"{type(plain).__name__} fails by itself on images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    actual = _train(lambda: aligned(images, mixed)[0], seed)
    parameters = zip(plain.parameters(), aligned.parameters(), strict=True)
    return (
        _most(zip(expected, actual, strict=True)),
        _most((p.grad, q.grad) for p, q in parameters),
        max(_most(zip(plain.buffers(), aligned.buffers(), strict=True)), _most_of_attributes(plain, aligned)),
    )


def _most_of_attributes(plain: nn.Module, aligned: nn.Module) -> float:
    """The largest difference of attributes; infinite where one model has others, or tensors without data."""
    (names, ours), (other_names, theirs) = map(_attributes, (plain, aligned))
    has_data = not any(map(is_fake, Reach(aligned.named_modules()).tensors.values()))
    return _most(zip(ours, theirs, strict=True)) if names == other_names and has_data else float("inf")


def _attributes(model: nn.Module) -> tuple[list[str], list[Any]]:
    """The data in attributes of all modules, and where each is: other objects count by their class."""
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in INTERNAL | {CHOSEN, "forward"}:
                leaves = tree_leaves(value)
                state |= {f"{path}.{name}[{i}]": x for i, x in enumerate(leaves)}
    data = [x if isinstance(x, (Tensor, *ATOMS)) else type(x).__name__ for _, x in sorted(state.items())]
    return sorted(state), data


def _train(forward: Callable[[], Any], seed: int) -> list[Any]:
    """Outputs of several training steps: a graph that fails to update state shows at the second, or at the third."""
    outputs: list[Any] = []
    for step in range(STEPS):
        torch.manual_seed(seed + step)
        leaves = tree_leaves(forward())
        terms = [o.float().square().mean() for o in leaves if isinstance(o, Tensor) and o.requires_grad]
        if terms:
            torch.stack(terms).sum().backward()
        outputs += [o.detach() if isinstance(o, Tensor) else o for o in leaves]
    return outputs


def _permutation(aligned: nn.Module, images: Tensor, mask: Tensor) -> float:
    order = torch.arange(len(images)).roll(1)
    return _largest(share(aligned, images[order], mask[order]), share(aligned, images, mask)[order])


def class_axis(soft: Tensor) -> int:
    """The axis of a soft target on which two classes sum to 1."""
    pairs = [a for a in range(1, soft.dim()) if soft.shape[a] == 2]
    return next((a for a in pairs if bool((soft.sum(a) - 1).abs().max() < 1e-3)), pairs[0])


def _most(pairs: Any) -> float:
    return max((_largest(a, b) for a, b in pairs), default=0.0)


def _largest(a: Any, b: Any) -> float:
    """Largest difference; infinite if only one of them is missing or not finite, or if shapes differ."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if a is b or (type(a) is type(b) and a == b) else float("inf")
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach(), b.detach()
    # equal infinities, whose difference is NaN, count as equal
    same = (a == b) | (a.isnan() & b.isnan())
    difference = (a.double() - b.double()).abs().nan_to_num(float("inf"))
    return float(difference.masked_fill(same, 0.0).max()) if a.numel() else 0.0


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
