"""Labels of fused attention as one operator of a compiled graph, a few samples at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tlfx import runtime
from tlfx.runtime import BatchAxis, Equation

ONE, BY_HEAD = Equation("abhqm", "abm", "abq"), Equation("abhqm", "abhm", "abhq")


def operands(equation: Equation, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Attention of 3 samples, 2 heads, 300 queries and keys: each sample is a part."""
    query, key = torch.randn(2, 3, 2, 300, 8).unbind()
    labels = torch.rand(3, 1, 1, *([2] if equation is BY_HEAD else []), 300, 1)
    return (query, key, labels, equation), {"where": BatchAxis(0), **options}


@pytest.mark.parametrize("equation", [ONE, BY_HEAD])
@pytest.mark.parametrize("kind", ["plain", "mask", "some queries", "rows without keys"])
def test_a_compiled_graph_has_one_operator(kind: str, equation: Equation) -> None:
    """And gives the labels of the same function that is not compiled."""
    mask = torch.rand(3, 2, 300, 300) > 0.1
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "mask": {"mask": mask},
        "some queries": {"queries": (0, 7)},
        "rows without keys": {"mask": mask & (torch.arange(300) > 0)[:, None]},
    }
    args, given = operands(equation, **options[kind])
    own = torch.rand_like(args[2]) if kind == "rows without keys" else None
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    attention: Any = partial(runtime.attention, **given)
    compiled: Any = torch.compile(attention, backend=record, fullgraph=True)
    torch.testing.assert_close(compiled(*args, own), attention(*args, own), rtol=0, atol=1e-6)
    (graph,) = graphs
    assert sum("attention_in_parts" in str(n.target) for n in graph.graph.nodes) == 1
    assert not any("softmax" in str(n.target) for n in graph.graph.nodes)


@pytest.mark.parametrize("equation", [ONE, BY_HEAD])
@pytest.mark.parametrize("batch", [1, 3])
def test_its_fake_result_has_the_shape_and_strides_of_the_real_one(equation: Equation, batch: int) -> None:
    (query, key, labels, _), _ = operands(equation)
    given = (query[:batch], key[:batch], labels[:batch], None, None, 0.3, *equation)
    torch.library.opcheck(
        torch.ops.tlfx.attention_in_parts.default, given, test_utils=["test_schema", "test_faketensor"]
    )
