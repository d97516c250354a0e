"""The Triton kernel for labels of attention against plain arithmetic, by Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import Case, cases
from hypothesis import given, settings
from torch import Tensor
from triton_kernels import compiled, interpreted, shared_memory

from tlfx import runtime
from tlfx.runtime import BatchAxis, Equation
from tlfx.runtime.kernel_attention import attention_by_kernel, attention_of_heads_by_kernel
from tlfx.runtime.kernels import load_kernels

pytest.importorskip("triton")
ONE, EQUATION = BatchAxis(0), Equation("abhqm", "abm", "abq")


def call(case: Case) -> Tensor:
    args, options = case.given()
    attended = attention_by_kernel(*args, **options)
    assert attended is not None
    return attended


@compiled
def test_in_the_interpreter() -> None:
    """Triton reads the flag when it is imported, so the interpreted tests run in a separate process."""
    others = ("test_convolution_kernel.py", "test_mixing_kernel.py")
    files = [__file__, *(str(Path(__file__).with_name(name)) for name in others)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *files]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "11 passed" in done.stdout


@interpreted
@settings(max_examples=6)
@given(cases())
def test_labels_are_those_of_plain_arithmetic(case: Case) -> None:
    torch.testing.assert_close(call(case).double(), case.expected(), rtol=0, atol=1e-6)


@interpreted
@pytest.mark.parametrize("masked", [False, True])
def test_labels_that_differ_from_head_to_head(masked: bool) -> None:
    """Windows of 2 samples, with labels and masses of each head, as heads="norm" weights them."""
    where = BatchAxis(0, 1, 3)
    query, key = torch.randn(2, 6, 2, 5, 8).unbind()
    labels = torch.rand(2, 1, 3, 2, 5, 3)
    mask = torch.rand(5, 5) > 0.3 if masked else None
    mixed = attention_of_heads_by_kernel(query, key, labels, where=where, mask=mask)
    value = runtime.merge_batch(labels, where)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    assert mixed is not None
    torch.testing.assert_close(mixed, runtime.split_batch(expected, where), equal_nan=True)


@interpreted
def test_several_blocks_of_queries_and_keys() -> None:
    """The online softmax over blocks, of which the first hides all keys from some queries."""
    query, key = torch.randn(1, 2, 66, 8) * 3, torch.randn(1, 2, 130, 8) * 3
    mask = torch.ones(66, 130, dtype=torch.bool)
    mask[:9, :64] = False
    for given_mask, causal in ((mask, False), (None, True)):
        options = {"where": ONE, "mask": given_mask, "causal": causal, "scale": None, "queries": None}
        case = Case(query, key, torch.rand(1, 1, 1, 130, 1), EQUATION, None, options)
        torch.testing.assert_close(call(case).double(), case.expected(), rtol=0, atol=1e-6)


@interpreted
def test_wide_heads_and_types_that_differ() -> None:
    query, key = torch.randn(1, 1, 17, 200, dtype=torch.bfloat16), torch.randn(1, 1, 40, 200)
    options: dict[str, Any] = {"where": ONE, "mask": None, "causal": False, "scale": None, "queries": None}
    case = Case(query, key, torch.rand(1, 1, 1, 40, 16), EQUATION, None, options)
    torch.testing.assert_close(call(case).double(), case.expected(), rtol=0, atol=1e-6)


@interpreted
def test_a_constant_label_stays_constant() -> None:
    query, key = torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    label = attention_by_kernel(query, key, torch.full((2, 1, 1, 30, 1), 0.3), EQUATION, where=ONE)
    torch.testing.assert_close(label, torch.full((2, 30, 1), 0.3), rtol=0, atol=1e-6)


@interpreted
def test_a_query_without_keys_and_without_its_own_label_is_not_a_number() -> None:
    query, key = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 4, 8)
    mask = torch.tensor([True, False, True])[:, None].expand(3, 4)
    label = attention_by_kernel(query, key, torch.rand(1, 1, 1, 4, 1), EQUATION, where=ONE, mask=mask)
    assert label is not None
    assert label.isnan().flatten().tolist() == [False, True, False]


@compiled
@pytest.mark.parametrize(
    "changed",
    [
        {"query": torch.float64},
        {"width": 257},
        {"channels": 17},
        {"labels": torch.float64},
        {"equation": Equation("ahbqm", "ahbm", "ahbq")},
    ],
)
def test_where_the_kernel_cannot(changed: dict[str, Any]) -> None:
    """Labels then take the other way; three axes along which labels vary are too many."""
    width = changed.get("width", 8)
    query = torch.randn(8, 2, 5, width, dtype=changed.get("query", torch.float32))
    key = torch.randn(8, 2, 6, width, dtype=query.dtype)
    equation = changed.get("equation", EQUATION)
    varying = (2, 2, 2) if equation is not EQUATION else (2, 2)
    labels = torch.rand(2, *varying, 6, changed.get("channels", 1), dtype=changed.get("labels", torch.float32))
    where = BatchAxis(0, 2, 2)
    assert attention_by_kernel(query, key, labels, equation, where=where) is None
    assert runtime.attention(query, key, labels.float(), equation, where=where).shape[0] == 2


@compiled
def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    query, labels = torch.randn(2, 2, 5, 8), torch.rand(2, 1, 1, 5, 1)
    monkeypatch.setitem(sys.modules, "tlfx.runtime.attention_kernel", None)
    load_kernels()
    try:
        assert attention_by_kernel(query, query, labels, EQUATION, where=ONE) is None
    finally:
        monkeypatch.undo()
        load_kernels()


@compiled
@pytest.mark.parametrize("options", [{}, {"queries": (0, 2)}, {"queries": (0, 2), "causal": True}])
def test_a_graph_that_calls_it_is_compiled_without_a_break(options: dict[str, Any]) -> None:
    """Up to the kernel itself, which needs a GPU."""
    calls: list[Any] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        calls.extend(n.target for n in graph.graph.nodes if n.op == "call_function")
        return lambda *args: (torch.rand(2, 1, 1, 2 if options else 5, 1).flatten(1, -2),)

    def labels_of(query: Tensor, labels: Tensor) -> Tensor | None:
        return attention_by_kernel(query, query, labels, EQUATION, where=ONE, **options)

    load_kernels()
    torch.compiler.reset()
    torch.compile(labels_of, backend=record, fullgraph=True)(torch.randn(2, 2, 5, 8), torch.rand(2, 1, 1, 5, 1))
    assert torch.ops.tlfx.attention_labels.default in calls or torch.ops.tlfx.attention_labels in calls


@compiled
def test_export_and_fake_tensors_know_the_operator() -> None:
    from tlfx.runtime.attention_kernel import attention_labels

    class Net(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, labels: Tensor) -> Tensor:
            return attention_labels(query, key, labels, None, None, None, None, 0.3, False)

    given = torch.rand(2, 1, 1, 3, 9, 8), torch.rand(2, 1, 1, 3, 7, 8), torch.rand(2, 1, 1, 7, 1)
    graph = torch.export.export(Net(), given, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * 3).graph
    (node,) = (n for n in graph.nodes if n.target is torch.ops.tlfx.attention_labels.default)
    assert node.meta["val"].shape[1:] == (1, 1, 9, 1)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "width"), [("bf16", 64), ("fp16", 256), ("fp32", 64), ("fp32", 256)])
@pytest.mark.parametrize(
    "variant", [{"CAUSAL": True, "INDEX": True}, {"MASK": 1, "OWN": True, "CHANNELS": 3}, {"MASK": 2}]
)
def test_it_compiles_for_gpus(variant: dict[str, Any], dtype: str, width: int) -> None:
    """To machine code, within the 99 KiB of shared memory that small GPUs have; no GPU is needed."""
    from tlfx.runtime.attention_kernel import attention_labels_kernel, most_rows

    rows = most_rows(width, 4 if dtype == "fp32" else 2)
    known = {"HEADS": 6, "PER_KEY": 2, "CHANNELS": 1, "CHANNEL_BLOCK": 4, "WIDTH_BLOCK": width, "ROWS": rows}
    known |= {
        "COLUMNS": rows,
        "WIDEN": False,
        "CAUSAL": False,
        "MASK": 0,
        "OWN": False,
        "INDEX": False,
        "RESIDUAL": True,
        **variant,
    }
    types = {
        "scale": "fp32",
        "query": f"*{dtype}",
        "key": f"*{dtype}",
        "index": "*i64",
        "mask": "*i1" if known["MASK"] == 1 else "*fp32",
    }
    types |= dict.fromkeys(("labels", "own", "residual", "out"), "*fp32")
    assert shared_memory(attention_labels_kernel, types, known) <= 99 * 1024
