"""The Triton kernel for labels mixed by weights of the graph, against plain float64 arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from mixing_cases import EQUATIONS, Mixing, mixings, operands
from triton_kernels import compiled, interpreted, shared_memory

from tlfx.runtime import Equation
from tlfx.runtime.kernel_mixing import mix_by_kernel

pytest.importorskip("triton")


@interpreted
@settings(max_examples=40)
@given(mixings())
def test_labels_are_those_of_plain_arithmetic(case: Mixing) -> None:
    mixed = case.by_kernel()
    assert mixed is not None
    torch.testing.assert_close(mixed.double(), case.expected(), rtol=0, atol=1e-6)


@interpreted
def test_weights_that_are_all_zero_are_uniform() -> None:
    weight, labels = torch.zeros(1, 3, 200), torch.rand(2, 200, 1)
    mixed = mix_by_kernel(weight, labels, Equation("qm", "m", "q"))
    assert mixed is not None
    torch.testing.assert_close(mixed, labels.mean(1, keepdim=True).expand(-1, 3, -1))


@compiled
@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.float64},
        {"channels": 17},
        {"equation": Equation("ghqm", "m", "q"), "g": 2},
        {"equation": Equation("abcqm", "abcm", "abcq")},
        {"equation": Equation("qam", "am", "q")},
    ],
)
def test_where_the_kernel_cannot(changed: dict[str, Any]) -> None:
    """Two axes of heads, three along which labels vary, and keys along two."""
    weight, labels = operands(**{"equation": EQUATIONS[0], "dtype": torch.float32, **changed})
    assert mix_by_kernel(weight, labels, changed.get("equation", EQUATIONS[0])) is None


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_it_compiles_for_gpus(dtype: str, size: int) -> None:
    """To machine code; no GPU is needed."""
    from tlfx.runtime.mixing_kernel import mix_labels_kernel

    known = {
        "HEADS": 6,
        "CHANNELS": 3,
        "CHANNEL_BLOCK": 4,
        "ROWS": 32,
        "COLUMNS": 128,
        "SIZE": size,
        "OWN": size == 1,
        "RESIDUAL": True,
    }
    types = {"weight": f"*{dtype}"} | dict.fromkeys(("labels", "own", "residual", "out"), "*fp32")
    assert shared_memory(mix_labels_kernel, types, known) <= 48 * 1024
