"""Small models around one operator, their labels read at every element, and the laws that hold whatever the operator.

A test gives a function of images and a twin: what the label arithmetic of the paper (Xiao et al., ICCV 2023,
arXiv 2210.06455) makes of the label at every element, in float64. A label is the share of the first image, NaN for
elements without image content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor
from torch.fx import GraphModule, Node

from tlfx import Operation, testing
from tlfx.propagate.values import Role

TOLERANCE: dict[str, Any] = {"rtol": 0.0, "atol": 2e-6, "equal_nan": True}
BATCH = 3
Twin = Callable[[Tensor, Tensor], Any]
"""Labels and images, both (batch, channels, *size) in float64, to the label at every element of every output."""


class Probe(testing.LabelProbe):
    """A captured function of images (batch, *size), and the share of the first image at every element."""

    def __init__(self, function: Callable[..., Any], size: Sequence[int], **parts: Any) -> None:
        super().__init__(function, torch.randn(BATCH, *size, generator=torch.Generator().manual_seed(0)), parts)

    @property
    def roles(self) -> list[Role]:
        """What each output is."""
        return [v.role for v in self.values]

    def shares(self, mask: Tensor) -> list[Tensor]:
        """The share of the first image at every element of each output that has content."""
        torch.manual_seed(0)
        return [label[..., 0] for label in self.labels(mask)]

    def calls(self, function: Callable[..., Any]) -> list[Node]:
        """The calls of a function of label arithmetic in the aligned graph."""
        return calls(self.graph_module, function)

    def samples(self) -> list[Tensor]:
        """The sample that each element of an output belongs to."""
        numbers = torch.arange(BATCH)
        split = [(v.batch_axis.axis, v.batch_axis.split(v.shape, BATCH)) for v in self.values if v.is_content]
        return [
            numbers.view(-1, *[1] * (len(full) - axis - 2)).expand(full).flatten(axis, axis + 2) for axis, full in split
        ]


def calls(graph_module: GraphModule, function: Callable[..., Any]) -> list[Node]:
    """The nodes of a graph that call a function, in order."""
    return [n for n in graph_module.graph.nodes if n.target is function]


def several(examples: int) -> settings:
    """Settings of a property whose every example captures a model, too slow to shrink failures: so many examples with
    the profile "many", and two fifths of them with the profile "few" of tests/conftest.py."""
    share = settings.default.max_examples / settings.get_profile("many").max_examples
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=math.ceil(examples * share), deadline=None, phases=phases)


def groups(cases: Sequence[Any]) -> list[Any]:
    """Twelve cases at a time, which are captured together."""
    parts = [cases[start : start + 12] for start in range(0, len(cases), 12)]
    return [pytest.param(part, id=f"{part[0]} to {part[-1]}") for part in parts]


def check(
    function: Callable[..., Any],
    twin: Twin,
    size: Sequence[int] = (4, 4, 6),
    operations: dict[str, Operation] | None = None,
    **parts: Any,
) -> Probe:
    """The labels of a function of images (batch, *size) equal those of its twin, and keep the laws of all labels."""
    probe = Probe(function, size, **parts)
    mask = random_mask(size, seed=1)
    computed = probe.shares(mask)
    expected = listed(twin(mask.double().expand(BATCH, *size), probe.images.double()))
    assert len(computed) == len(expected)
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), **TOLERANCE)
    for name, operation in (operations or {}).items():
        assert probe.operation(name) is operation, f"{name} is {probe.operation(name)}, expected {operation}"
    check_laws(probe, mask)
    return probe


def check_moves(function: Callable[..., Any], size: Sequence[int] = (4, 4, 6), **parts: Any) -> Probe:
    """Data movement: labels go where the same function brings them."""
    probe = check(function, lambda y, x: function(y, **parts), size, **parts)
    assert not {o for o in probe.propagation.operations.values() if o.has_label_arithmetic}
    return probe


def check_laws(probe: Probe, mask: Tensor) -> None:
    """Outputs are the function's own; labels stay in [0, 1], are linear in the mask, constant under a constant mask,
    swapped with the images, and each sample's own."""
    check_outputs(probe, mask)
    other = random_mask((1, *mask.shape[2:]), seed=2)
    later = torch.cat((mask[:1], other[1:]))
    masks = (mask, other, 0.25 * mask + 0.75 * other, 1 - mask, torch.full_like(mask, 0.3), later)
    labels = zip(*map(probe.shares, masks), probe.samples(), strict=True)
    for one, two, between, swapped, constant, split, sample in labels:
        assert not ((one < -1e-6) | (one > 1 + 1e-6)).any()
        torch.testing.assert_close(between, 0.25 * one + 0.75 * two, **TOLERANCE)
        torch.testing.assert_close(swapped, 1 - one, **TOLERANCE)
        torch.testing.assert_close(constant, torch.where(one.isnan(), one, 0.3), **TOLERANCE)
        torch.testing.assert_close(split, torch.where(sample == 0, one, two), **TOLERANCE)


def check_outputs(probe: Probe, mask: Tensor) -> None:
    """The aligned graph returns what the function itself returns."""
    torch.manual_seed(0)
    own = listed(probe.net(probe.images))
    torch.manual_seed(0)
    for output, expected in zip(probe.graph_module(probe.images, mask)[0], own, strict=True):
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


def random_mask(size: Sequence[int], seed: int) -> Tensor:
    """Shares of the first image, different at every pixel: (batch, 1, *size without channels)."""
    return torch.rand(BATCH, 1, *size[1:], generator=torch.Generator().manual_seed(seed))


def listed(outputs: Any) -> list[Tensor]:
    """One or several tensors as a list."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def unchanged(y: Tensor, x: Tensor) -> Tensor:
    """Twin of a point-wise transformation, Y ← Y."""
    return y


def tokens(images: Tensor) -> Tensor:
    """Pixels as tokens: (batch, channels, *size) to (batch, tokens, channels)."""
    return images.flatten(2).transpose(1, 2).contiguous()


def label_rows(y: Tensor) -> Tensor:
    """One label for each pixel taken as a token: (batch, channels, *size) to (batch, tokens)."""
    return y[:, 0].flatten(1)


def spread(rows: Tensor, channels: int) -> Tensor:
    """One label for all channels of a token: (batch, tokens) to (batch, tokens, channels)."""
    return rows.unsqueeze(-1).expand(*rows.shape, channels)


def squeezed(x: Tensor, spatial: int) -> Tensor:
    """Images with as many axes as are slid over."""
    return x.squeeze(2) if spatial == 1 else x


def normalised(weights: Tensor) -> Tensor:
    """Norm(|W|): rows of absolute values that sum to 1."""
    weights = weights.double().abs()
    return weights / weights.sum(-1, keepdim=True)
