"""Time and memory of training steps with alignment, and of the calls in them, relative to the same steps without."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlfx._torch import tree_leaves
from tlfx.aligned import align, planner_of
from tlfx.analysis.calls import count_kernels, in_turn, time_calls
from tlfx.analysis.invariants import rectangles
from tlfx.analysis.published import published
from tlfx.capture.arguments import Call
from tlfx.mix.target import MixedTarget
from tlfx.policy import DEFAULT, Policy

__all__ = ["ALIGNED", "CAPTURED", "PLAIN", "PUBLISHED", "Settings", "Timing", "bench", "compare"]

PLAIN = "plain"
"""The baseline step: the unmodified model and CutMix with its area target."""
CAPTURED = "captured"
"""The same target with the captured graph instead of the model's forward, without labels."""
ALIGNED = "aligned"
PUBLISHED = "published"
"""The formulation of the published code; see :mod:`tlfx.analysis.published`."""
Forward = Callable[[], tuple[Any, Any]]
"""A call of a model: its output and the soft target."""
_RATE = 1e-6
"""Learning rate: parameters are written to and stay what they are."""


@dataclass(frozen=True)
class Settings:
    """Options of a measurement."""

    batch: int = 16
    pairs: int = 9
    warm_up: int = 2
    steps: int = 1
    """Training steps that are timed together. With more than one, each ends with a step of SGD, and none waits for the
    device: the steady state of training."""
    forward_only: bool = False
    dtype: torch.dtype = torch.float32
    """Types other than float32 use autocast."""
    device: str = "cpu"
    attention: Literal["auto", "fused", "reuse"] = "auto"
    """See :func:`tlfx.align`."""
    policy: Policy = DEFAULT
    compile: bool = False
    """Whether all kinds of step run through torch.compile."""
    published: bool = False
    """Whether to time the published formulation too."""


@dataclass(frozen=True)
class Timing:
    """Figures of one kind of step.

    Attributes:
        seconds: of the step, or of all that are timed together.
        plain: of the paired plain ones.
        images: number of images in them.
        memory: peak memory in bytes.
        plain_memory: that of the plain step.
        calls: seconds until the call of the model returns: on a GPU, the work of the host.
        kernels: on a GPU, the kernels that the call launches; on a CPU, its operators other than views, unless it is
            compiled.
        first: seconds of the first step, which compiles it; None if it is not compiled.
    """

    seconds: list[float]
    plain: list[float]
    images: int
    memory: int
    plain_memory: int
    calls: Sequence[float] = ()
    kernels: int | None = None
    first: float | None = None

    @property
    def call(self) -> float:
        """Median of the seconds of a call."""
        return statistics.median(self.calls)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair, sorted."""
        return sorted(one / other for one, other in zip(self.seconds, self.plain, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        low, _, high = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else [self.ratio] * 3
        return low, high

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.images / statistics.median(self.seconds)

    @property
    def memory_ratio(self) -> float:
        """Peak memory divided by that of the plain step."""
        return self.memory / self.plain_memory


def bench(model: nn.Module, size: tuple[int, ...], settings: Settings) -> dict[str, Timing]:
    """Time training steps of a model: plain CutMix with the area target, the captured graph with the same target
    (:data:`CAPTURED`), the aligned model, and the published formulation if ``settings.published``.

    Steps alternate on one model in one process, so that changes of the machine's speed affect all kinds equally. The
    model is aligned in place and stays aligned. Capture is not timed. The published formulation runs on a copy. Raises
    InputError if ``settings.published`` is set and the model has no attention.
    """
    device = torch.device(settings.device)
    model = align(model.to(device).train(), attention=settings.attention, policy=settings.policy)
    images = torch.randn(settings.batch, *size, device=device)
    with _precision(settings):
        graph = planner_of(model).plan(model, Call.of(images)).captured.graph_module
        with torch.no_grad():
            classes = _per_image(graph(images)).shape[1]
    target = _target(settings.batch, size[-2:], classes).to(device)
    run, captured = (torch.compile(x) if settings.compile else x for x in (model, graph))
    forwards: dict[str, Forward] = {
        PLAIN: lambda: (run(images), target.area()),
        CAPTURED: lambda: (captured(images), target.area()),
        ALIGNED: lambda: run(images, target),
    }
    models = dict.fromkeys(forwards, model)
    if settings.published:
        models[PUBLISHED] = copy.deepcopy(model)
        with _precision(settings):
            forwards[PUBLISHED] = published(models[PUBLISHED], images, target)
    steps = {name: _step(models[name], forward, settings) for name, forward in forwards.items()}
    first = _compile(steps, settings.device) if settings.compile else {}
    timings = compare(steps, settings)
    inside = {name: partial(_in_modes, forward, settings) for name, forward in forwards.items()}
    calls = time_calls(inside, settings.pairs, device)
    return {
        name: replace(
            timing,
            calls=calls[name],
            kernels=count_kernels(inside[name], device, compiled=settings.compile),
            first=first.get(name),
        )
        for name, timing in timings.items()
    }


def _target(batch: int, size: tuple[int, ...], classes: int) -> MixedTarget:
    first, second = torch.randint(classes, (2, batch), generator=torch.Generator().manual_seed(0)).unbind()
    mask = rectangles(batch, size, seed=0)
    return MixedTarget(first=first, second=second, mask=mask, num_classes=classes, smoothing=0.1)


def _step(model: nn.Module, forward: Forward, settings: Settings) -> Callable[[], None]:
    """A training step."""

    def loss() -> Tensor:
        """The cross-entropy of a forward."""
        with _precision(settings):
            output, soft = (_per_image(x) for x in forward())
        return F.cross_entropy(output.float(), soft)

    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)

    def step() -> None:
        """A forward, and unless ``forward_only`` a backward; with an optimizer step if there are several."""
        with torch.no_grad() if settings.forward_only else nullcontext():
            value = loss()
        if not settings.forward_only:
            value.backward()
            if settings.steps > 1:
                optimizer.step()
            model.zero_grad(set_to_none=True)

    def steps() -> None:
        """All steps that are timed together."""
        for _ in range(settings.steps):
            step()

    return steps


def _per_image(output: Any) -> Tensor:
    """The first tensor of an output, averaged over its positions: (batch, classes)."""
    first: Tensor = next(x for x in tree_leaves(output) if isinstance(x, Tensor))
    return first.flatten(2).mean(2) if first.dim() > 2 else first


def _precision(settings: Settings) -> AbstractContextManager[Any]:
    plain = settings.dtype is torch.float32
    return nullcontext() if plain else torch.autocast(torch.device(settings.device).type, settings.dtype)


def _in_modes(forward: Forward, settings: Settings) -> None:
    """Call the model as a step does."""
    with torch.no_grad() if settings.forward_only else nullcontext(), _precision(settings):
        forward()


def _compile(steps: Mapping[str, Callable[[], None]], device: str) -> dict[str, float]:
    """Seconds of each first step, after torch.compile has loaded what it needs."""
    torch.compile(torch.sin)(torch.ones(2, device=device))
    return {name: _seconds(step, device) for name, step in steps.items()}


def compare(steps: Mapping[str, Callable[[], None]], settings: Settings) -> dict[str, Timing]:
    """Time several kinds of step alternately; :data:`PLAIN` must be one of them."""
    for step in steps.values():
        for _ in range(settings.warm_up):
            step()
    memory = {name: _peak_memory(step, settings.device) for name, step in steps.items()}
    seconds = in_turn(steps, settings.pairs, lambda step: _seconds(step, settings.device))
    images = settings.batch * settings.steps
    return {name: Timing(seconds[name], seconds[PLAIN], images, memory[name], memory[PLAIN]) for name in steps}


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
    """Peak memory of the tensors of a step in bytes, without the memory that was allocated before."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return int(torch.cuda.max_memory_allocated() - before)
    # torch counts no peak memory of the CPU: it follows from the allocations that the profiler records
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
