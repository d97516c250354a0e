"""Random convolutions and average pools of labels, and the labels of each by plain float64 arithmetic (Table 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from tlfx.runtime.kernel_convolution import convolve_by_kernel, pool_by_kernel

aten = torch.ops.aten
CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
BY_NUMBER = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
BY_NAME = {1: aten.conv1d.padding, 2: aten.conv2d.padding, 3: aten.conv3d.padding}
POOLS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


@dataclass(frozen=True)
class Sliding:
    """The arguments of ``tlfx.runtime.convolve``, or of ``resample`` without a weight; labels (batch, lead, *size,
    channels)."""

    labels: Tensor
    weight: Tensor | None
    args: tuple[Any, ...]
    valid: Tensor | None
    residual: Tensor | None = None

    @property
    def spatial(self) -> int:
        """The number of axes that the window slides over."""
        return self.labels.dim() - 3

    def by_kernel(self, device: str = "cpu") -> Tensor | None:
        """Labels by the kernel."""
        labels, weight, valid, residual = (
            None if x is None else x.to(device) for x in (self.labels, self.weight, self.valid, self.residual)
        )
        assert labels is not None
        if weight is None:
            return pool_by_kernel(POOLS[self.spatial], labels, *self.args, valid=valid, residual=residual)
        operator = (BY_NAME if isinstance(self.args[1], str) else BY_NUMBER)[self.spatial]
        return convolve_by_kernel(operator, labels, weight, *self.args, valid=valid, residual=residual)

    def expected(self) -> Tensor:
        """Y ← Norm(K)·Y in float64, (batch, lead · positions, channels); 0 where the window sees no content."""
        labels = self.labels.double()
        valid = torch.ones(labels.shape[1:-1]) if self.valid is None else self.valid
        samples = []
        for i, label in enumerate(labels):
            over, under = (
                self.slide(maps[:, None], i).squeeze(1)
                for maps in ((label.movedim(-1, 0) * valid).flatten(0, 1), valid.double())
            )
            quotient = over.unflatten(0, (-1, len(valid))) / under.clamp_min(1e-20)
            samples.append(quotient.flatten(1).T)
        mixed = torch.stack(samples)
        return mixed if self.residual is None else (mixed + self.residual.double()) / 2

    def slide(self, maps: Tensor, sample: int) -> Tensor:
        """The operator on maps (count, 1, *size) of one sample."""
        if self.weight is None:
            return POOL[self.spatial](maps, *self.args)
        weight = self.weight[sample] if self.weight.dim() == self.labels.dim() else self.weight
        return CONVOLVE[self.spatial](maps, weight.double(), None, *self.args)


@st.composite
def slidings(draw: st.DrawFn) -> Sliding:
    """One to three axes, with strides, padding, dilation, content in some places, and kernels of samples."""
    spatial = draw(st.integers(1, 3))
    numbers = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)
    is_pool = draw(st.booleans())
    window, stride, dilation = draw(numbers), draw(numbers), [1] * spatial if is_pool else draw(numbers)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    # no output is empty
    size = [r + draw(st.integers(0, 9 if spatial < 3 else 3)) for r in reach]
    batch, lead, channels = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]))
    weight: Tensor | None = None
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if is_pool:
        # a pool pads by half of its window at most
        args: tuple[Any, ...] = (
            window,
            draw(st.sampled_from([[], stride])),
            [k // 2 for k in window],
            draw(st.booleans()),
        )
    else:
        weight = torch.rand(*([batch] if draw(st.booleans()) else []), 1, 1, *window)
        padding: Any = [draw(st.integers(0, 3)) for _ in size]
        if draw(st.booleans()):
            padding = draw(st.sampled_from(["same", "valid"]))
            stride = [1] * spatial if padding == "same" else stride
        args = (stride, padding, dilation)
    # channels first in memory, as interpolation leaves them
    labels = torch.rand(batch, channels, lead, *size).movedim(1, -1)
    valid = (torch.rand(lead, *size) > 0.3).float() if draw(st.booleans()) else None
    case = Sliding(labels, weight, args, valid)
    residual = torch.rand(case.expected().shape[1], draw(st.sampled_from([1, batch])), channels).transpose(0, 1)
    return replace(case, residual=draw(st.sampled_from([None, residual])))
