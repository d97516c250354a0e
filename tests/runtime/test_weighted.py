"""Labels weighted by norms of values, of all types, against plain float64 arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tlfx import runtime
from tlfx.runtime import BatchAxis

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]


def norm(value: Tensor, axis: int) -> Tensor:
    wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
    return wide.abs().square().sum(axis).sqrt()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("places", [[0, 1, 2, 3], [1, 3]])
@pytest.mark.parametrize("scales", [(1, 1), (1, -0.5)])
def test_a_residual_connection_by_norm(dtype: torch.dtype, places: list[int], scales: tuple[float, float]) -> None:
    """All places, or some; one of the summands has no norm at the last of them."""
    a, b = torch.randn(2, 3, 4, 8, dtype=torch.float64).to(dtype).unbind()
    b[:, 3] = 0
    one, other = torch.rand(2, 3, len(places), 1).unbind()
    weights = [norm(x, -1)[:, places, None] * abs(s) for x, s in zip((a, b), scales, strict=True)]
    expected = (one * weights[0] + other * weights[1]) / (weights[0] + weights[1])
    label = runtime.residual_by_norm(
        one, other, a, b, torch.tensor(places), where=BatchAxis(0), over=[3], scales=scales
    )
    torch.testing.assert_close(label.double(), expected, rtol=0, atol=1e-6)


def test_labels_are_averaged_where_neither_summand_has_a_norm() -> None:
    zero, (one, other) = torch.zeros(1, 4, 8), torch.rand(2, 1, 4, 1).unbind()
    label = runtime.residual_by_norm(one, other, zero, zero, torch.arange(4), where=BatchAxis(0), over=[3])
    torch.testing.assert_close(label, (one + other) / 2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 4])
def test_labels_with_the_norm_of_their_token(dtype: torch.dtype, size: int) -> None:
    """The norm over channels, of which there may be one."""
    value = torch.randn(3, 5, size, dtype=torch.float64).to(dtype)
    labels = torch.rand(3, 1, 1, 5, 1, 1)
    massed = runtime.by_value(labels, value, where=BatchAxis(0))
    torch.testing.assert_close(
        massed[..., 1].double(), norm(value, -1), rtol=1e-3 if dtype.itemsize < 4 else 1e-6, atol=0
    )
    torch.testing.assert_close(massed[..., 0], massed[..., 1] * labels.flatten(1))
