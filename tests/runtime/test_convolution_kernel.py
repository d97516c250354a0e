"""The Triton kernel for labels under a convolution or a pool, against plain float64 arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from sliding_cases import Sliding, slidings
from torch import Tensor, nn
from triton_kernels import compiled, interpreted, shared_memory

from tlfx.runtime.kernel_convolution import convolve_by_kernel, pool_by_kernel
from tlfx.runtime.kernels import load_kernels

pytest.importorskip("triton")
CONV = torch.ops.aten.conv2d.default


@interpreted
@settings(max_examples=80)
@given(slidings())
def test_labels_are_those_of_plain_arithmetic(case: Sliding) -> None:
    convolved = case.by_kernel()
    assert convolved is not None
    torch.testing.assert_close(convolved.double(), case.expected(), rtol=0, atol=1e-6)


@interpreted
def test_several_blocks_of_positions() -> None:
    """A block of 128 positions ends in one map, and the next begins there; all weights are zero, so that the mean of
    each window is computed."""
    labels = torch.rand(2, 1, 17, 13, 1)
    convolved = convolve_by_kernel(CONV, labels, torch.zeros(1, 1, 3, 3), [1, 1], [1, 1], [1, 1])
    maps = labels[..., 0].double()
    expected = torch.nn.functional.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
    assert convolved is not None
    torch.testing.assert_close(convolved.double(), expected.flatten(1)[..., None], rtol=0, atol=1e-6)


@compiled
@pytest.mark.parametrize(
    "changed",
    [
        {"operator": torch.ops.aten.conv_transpose2d.input},
        {"labels": torch.rand(1, 1, 4, 4, 17)},
        {"labels": torch.rand(1, 1, 4, 4, 1).double()},
    ],
)
def test_where_the_kernel_cannot(changed: dict[str, Any]) -> None:
    given = {"operator": CONV, "labels": torch.rand(1, 1, 4, 4, 1), "weight": torch.rand(1, 1, 3, 3), **changed}
    assert convolve_by_kernel(**given) is None


@compiled
def test_other_resampling_is_not_a_pool() -> None:
    labels = torch.rand(1, 1, 4, 4, 1)
    assert pool_by_kernel(torch.ops.aten.upsample_bilinear2d.vec, labels, [8, 8], [], 0) is None


@compiled
def test_a_graph_that_calls_it_is_exported_without_a_break() -> None:
    """For any batch, after a reset too; up to the kernel itself, which needs a GPU."""

    class Net(nn.Module):
        def forward(self, labels: Tensor, weight: Tensor) -> Tensor | None:
            return convolve_by_kernel(CONV, labels, weight, [2, 2], [1, 1], [1, 1])

    load_kernels()
    torch.compiler.reset()
    given = torch.rand(2, 1, 8, 6, 1), torch.rand(1, 1, 3, 3)
    shapes = ({0: torch.export.Dim.DYNAMIC}, None)
    graph = torch.export.export(Net(), given, dynamic_shapes=shapes, strict=True).graph
    (node,) = (n for n in graph.nodes if n.target is torch.ops.tlfx.convolve_labels.default)
    assert node.meta["val"].shape[1:] == (12, 1)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_compiles_for_gpus(valid: bool, channels: int) -> None:
    """To machine code; no GPU is needed."""
    from tlfx.runtime.convolution_kernel import convolve_labels_kernel

    known = {
        "TAPS": 49,
        "WINDOW_Y": 7,
        "WINDOW_X": 7,
        "CHANNELS": channels,
        "CHANNEL_BLOCK": 4 if channels > 1 else 1,
        "ROWS": 128,
        "WEIGHTED": True,
        "VALID": valid,
        "RESIDUAL": True,
    }
    types = dict.fromkeys(("labels", "weight", "valid", "residual", "out"), "*fp32")
    assert shared_memory(convolve_labels_kernel, types, known) <= 48 * 1024
