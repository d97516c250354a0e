"""Time and memory of the one-time work before the first aligned step: capture, propagation and rewriting."""

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
    """Seconds of each stage, number of operators in the graph, and increase of the process's peak memory in bytes.

    The increase is measured over propagation and rewriting.
    """

    operators: int
    capture: float
    propagate: float
    rewrite: float
    memory: int

    @property
    def seconds(self) -> float:
        """Seconds of all stages together."""
        return self.capture + self.propagate + self.rewrite


def prepare(model: nn.Module, images: Tensor) -> Preparation:
    """Capture a model in training mode for any batch size, propagate labels, write the aligned graph, and time each.

    ``images`` are (batch ≥ 2, channels, height, width). Raises the errors of :func:`tlfx.align`.

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
    """Peak memory of the process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
