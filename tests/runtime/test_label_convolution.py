"""Label arithmetic by convolutions, in the forms that are fast on small and on large maps; and its modes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tlfx import runtime
from tlfx.runtime import label_arithmetic

CONV = torch.ops.aten.conv2d.default


@pytest.mark.parametrize("side", [6, 60])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_a_convolution_of_labels_over_that_of_ones(side: int, channels: int, padded: bool) -> None:
    """Of 2 · channels small maps, and of large ones; content everywhere, or in some of two leading parts."""
    lead = 2 if padded else 1
    labels, kernel = torch.rand(2, lead, side, side, channels), torch.rand(1, 1, 3, 3)
    valid = (torch.rand(lead, side, side) > 0.2).float() if padded else None
    convolved = runtime.convolve(CONV, labels, kernel, [2, 2], [1, 1], [1, 1], valid=valid)
    seen = torch.ones(lead, side, side) if valid is None else valid
    maps = (labels * seen[..., None]).movedim(-1, 1).flatten(0, 2)[:, None].double()
    over = F.conv2d(maps, kernel.double(), None, 2, 1).view(2, channels, lead, -1)
    under = F.conv2d(seen[:, None].double(), kernel.double(), None, 2, 1).view(lead, -1)
    expected = (over / under.clamp_min(1e-20)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(convolved.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (300, 300, 3, 3), (1, 1, 7, 7)])
@pytest.mark.parametrize("signed", [False, True])
def test_kernel_weights_in_parts(shape: tuple[int, ...], signed: bool) -> None:
    kernel = torch.randn(shape)
    size = kernel.double().clamp_min(0) if signed else kernel.double().abs()
    weights = runtime.kernel_weights(kernel, signed)
    torch.testing.assert_close(weights.double(), size.sum((0, 1), keepdim=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_operator_that_keeps_ones_is_not_divided_by_them(channels: int) -> None:
    labels = torch.rand(2, 2, 8, 6, channels)
    pool = torch.ops.aten.avg_pool2d.default
    divided = runtime.resample(pool, labels, [2, 2])
    torch.testing.assert_close(runtime.resample(pool, labels, [2, 2], keeps_ones=True), divided)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("casts", [False, True])
def test_modes_are_off_inside_and_restored_also_after_an_error(gradients: bool, casts: bool) -> None:
    seen: list[tuple[bool, bool]] = []

    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    @label_arithmetic
    def broken(label: Tensor) -> Tensor:
        seen.append(modes())
        raise ValueError

    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=casts):
        with pytest.raises(ValueError):  # noqa: PT011
            broken(torch.ones(1))
        assert seen == [(False, False)]
        assert modes() == (gradients, casts)
