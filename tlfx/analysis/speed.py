"""Time and memory of training steps with alignment, as ratios to the same step without, taken in pairs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tlfx.aligned import align, planner_of
from tlfx.analysis.invariants import rectangles
from tlfx.analysis.published import published
from tlfx.capture.arguments import Call
from tlfx.mix.target import MixedTarget

__all__ = ["ALIGNED", "CAPTURED", "PLAIN", "PUBLISHED", "Settings", "Timing", "bench", "compare"]

PLAIN = "plain"
"""The step that others are compared with: CutMix with its area target, the model untouched."""
CAPTURED = "captured"
"""The same with the captured graph in place of the model's own forward, without labels."""
ALIGNED = "aligned"
PUBLISHED = "published"
"""The formulation of the published code; see :mod:`tlfx.analysis.published`."""
CLASSES = 1000


@dataclass(frozen=True)
class Settings:
    """What is timed, and how often."""

    batch: int = 16
    pairs: int = 9
    warm_up: int = 2
    forward_only: bool = False
    dtype: torch.dtype = torch.float32
    """Other types than float32 by autocast."""
    device: str = "cpu"
    attention: str = "auto"
    """As in :func:`tlfx.align`."""
    published: bool = False
    """Whether to time the published formulation too."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one kind of step, beside those of the plain step that ran before each, and peak memory in bytes."""

    seconds: list[float]
    plain: list[float]
    images: int
    memory: int
    plain_memory: int

    @property
    def ratios(self) -> list[float]:
        """One for each pair, in order."""
        return sorted(one / other for one, other in zip(self.seconds, self.plain, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios of pairs."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        low, _, high = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else [self.ratio] * 3
        return low, high

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.images / statistics.median(self.seconds)

    @property
    def memory_ratio(self) -> float:
        """Peak memory over that of the plain step."""
        return self.memory / self.plain_memory


def bench(model: nn.Module, size: tuple[int, ...], settings: Settings) -> dict[str, Timing]:
    """Time training steps of a model on images of a size: plain CutMix with the area target, the captured graph with
    the same target (:data:`CAPTURED`), aligned, and the published formulation if ``settings.published``.

    Steps alternate in one process, on one model, so that a slow spell of the machine meets all. The model is aligned
    in place and left so; it is captured before the clock starts. The published formulation runs on a copy. Raises
    InputError if it is asked for and the model has no attention.
    """
    device = torch.device(settings.device)
    model = align(model.to(device).train(), attention=settings.attention)
    images = torch.randn(settings.batch, *size, device=device)
    target = _target(settings.batch, size[-2:]).to(device)
    with _precision(settings):
        graph = planner_of(model).plan(model, Call.of(images)).captured.graph_module
    steps = {
        PLAIN: _step(model, lambda: (model(images), target.area()), settings),
        CAPTURED: _step(model, lambda: (graph(images), target.area()), settings),
        ALIGNED: _step(model, lambda: model(images, target), settings),
    }
    if settings.published:
        copied = copy.deepcopy(model)
        with _precision(settings):
            steps[PUBLISHED] = _step(copied, published(copied, images, target), settings)
    return compare(steps, settings)


def _target(batch: int, size: tuple[int, ...]) -> MixedTarget:
    first, second = torch.randint(CLASSES, (2, batch), generator=torch.Generator().manual_seed(0)).unbind()
    mask = rectangles(batch, size, seed=0)
    return MixedTarget(first=first, second=second, mask=mask, num_classes=CLASSES, smoothing=0.1)


def _step(model: nn.Module, forward: Callable[[], tuple[Any, Any]], settings: Settings) -> Callable[[], None]:
    """A training step from what gives an output and its soft target."""

    def loss() -> Tensor:
        with _precision(settings):
            output, soft = (_per_image(x) for x in forward())
        return -(output.float().log_softmax(1) * soft[:, : output.shape[1]]).sum(1).mean()

    def step() -> None:
        with torch.no_grad() if settings.forward_only else nullcontext():
            value = loss()
        if not settings.forward_only:
            value.backward()
            model.zero_grad(set_to_none=True)

    return step


def _per_image(output: Any) -> Tensor:
    """The first tensor of an output, averaged over its positions: (batch, classes)."""
    found: Tensor = next(x for x in tree_leaves(output) if isinstance(x, Tensor))
    return found.flatten(2).mean(2) if found.dim() > 2 else found


def _precision(settings: Settings) -> AbstractContextManager[Any]:
    plain = settings.dtype is torch.float32
    return nullcontext() if plain else torch.autocast(torch.device(settings.device).type, settings.dtype)


def compare(steps: Mapping[str, Callable[[], None]], settings: Settings) -> dict[str, Timing]:
    """Time several kinds of step in turn, :data:`PLAIN` among them."""
    for step in steps.values():
        for _ in range(settings.warm_up):
            step()
    memory = {name: _peak_memory(step, settings.device) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for names in _orders(list(steps), settings.pairs):
        for name in names:
            seconds[name].append(_seconds(steps[name], settings.device))
    return {name: Timing(seconds[name], seconds[PLAIN], settings.batch, memory[name], memory[PLAIN]) for name in steps}


def _orders(names: list[str], count: int) -> Iterator[list[str]]:
    """The names in turn from another on each time, so that none always runs first, or after the same."""
    for i in range(count):
        first = i % len(names)
        yield names[first:] + names[:first]


def _seconds(step: Callable[[], None], device: str) -> float:
    if torch.device(device).type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _peak_memory(step: Callable[[], None], device: str) -> int:
    """Most bytes that tensors of a step hold at once, beside what was held before."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
