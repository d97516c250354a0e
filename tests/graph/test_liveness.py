"""Maps are freed when nothing reads them any more, and labels are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, vit
from torch import Tensor, nn
from torch.fx import Graph

from tlfx.graph.liveness import last_reads
from tlfx.propagate import Options
from tlfx.propagate.values import Value
from tlfx.trace import Trace, trace


class Views(nn.Module):
    """Writes through a view whose base, and another view of it, are read later."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        left, right = x[..., :4], x[..., 2:]
        left += x[..., 4:]
        return torch.cat((right.mean((2, 3)), x.amax((2, 3))), 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: vit(embed_dim=12),
    "in place": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), Views()),
    "views": Views,
}


def freed_and_kept(model: nn.Module, side: int) -> tuple[Trace, Trace]:
    """Traces of one capture, without and with the maps that nothing reads any more."""
    images = torch.rand(2, 3, side, side)
    freed = trace(model, images, Options(keep=False), any_batch=False)
    return freed, trace(model, images, Options(keep=True), captured=freed.captured)


@pytest.mark.parametrize("name", MODELS)
def test_labels_are_the_same_without_maps(name: str) -> None:
    side = 16 if name == "vit" else 8
    freed, kept = freed_and_kept(MODELS[name](), side)
    operations = [[str(v) for v in traced.propagation.operations.values()] for traced in (freed, kept)]
    assert operations[0] == operations[1]
    one, other = freed.graph_module, kept.graph_module
    images, mask = torch.rand(2, 3, side, side), torch.rand(2, 1, side, side)
    assert_same(one(images, mask), other(images, mask))
    assert all(map(torch.equal, one.buffers(), other.buffers()))


def test_maps_are_held_where_something_still_reads_them() -> None:
    traces = freed_and_kept(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Flatten()), 8)
    with_maps = [
        [n.name for n, v in traced.propagation.values.items() if isinstance(v, Value) and v.maps] for traced in traces
    ]
    assert with_maps == [["flatten"], ["input_1", "conv2d", "relu", "flatten"]]


def test_the_last_read_counts() -> None:
    graph = Graph()
    a = graph.placeholder("a")
    b = graph.call_function(abs, (a,))
    c = graph.call_function(max, (b, b))
    d = graph.call_function(min, (a, c))
    graph.output(d)
    assert {reader.name: [n.name for n in read] for reader, read in last_reads(graph).items()} == {
        "max_1": ["abs_1"], "min_1": ["a", "max_1"], "output": ["min_1"],
    }  # fmt: skip
