"""Time and memory of what happens once, before the first aligned step: capture, propagation and rewriting."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from dataclasses import dataclass

from torch import Tensor, nn

from tlfx.trace import trace

__all__ = ["Preparation", "prepare"]


@dataclass(frozen=True)
class Preparation:
    """Seconds of each stage, the number of operators in the graph, and by how many bytes the process's peak grew in
    the two stages of tlfx itself."""

    operators: int
    capture: float
    propagate: float
    rewrite: float
    memory: int

    @property
    def seconds(self) -> float:
        """All stages together."""
        return self.capture + self.propagate + self.rewrite


def prepare(model: nn.Module, images: Tensor) -> Preparation:
    """Capture a model in training mode for images (batch ≥ 2, channels, height, width) of any batch size, find all
    labels and write the aligned graph. Raises what :func:`tlfx.align` raises.

    >>> import torch
    >>> preparation = prepare(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), torch.zeros(2, 3, 4, 4))
    >>> preparation.operators, preparation.seconds > 0
    (2, True)
    """
    model.train()
    clock = [time.perf_counter()]
    traced = trace(model, images)
    clock.append(time.perf_counter())
    before = _peak()
    _ = traced.propagation
    clock.append(time.perf_counter())
    traced.rewrite()
    clock.append(time.perf_counter())
    calls = [n for n in traced.captured.graph_module.graph.nodes if n.op == "call_function"]
    first, second, third = (after - start for start, after in itertools.pairwise(clock))
    return Preparation(len(calls), first, second, third, _peak() - before)


def _peak() -> int:
    """Most bytes that the process has held at once so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
