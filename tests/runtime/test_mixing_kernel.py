"""The Triton kernel for labels mixed by weights of the graph, against plain float64 arithmetic."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from mixing_cases import EQUATIONS, Mixing, mixings, operands

from tlfx.runtime import Equation
from tlfx.runtime.kernel_mixing import mix_by_kernel

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_attention_kernel.py")
compiled = pytest.mark.skipif(INTERPRETED, reason="Triton interprets here")


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
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

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
    types = dict.fromkeys(mix_labels_kernel.arg_names, "i32") | dict.fromkeys(known, "constexpr")
    types |= {"weight": f"*{dtype}"} | dict.fromkeys(("labels", "own", "residual", "out"), "*fp32")
    places = {(mix_labels_kernel.arg_names.index(name),): value for name, value in known.items()}
    made = triton.compile(ASTSource(mix_labels_kernel, types, places), target=GPUTarget("cuda", 80, 32))
    assert made.metadata.shared <= 48 * 1024
