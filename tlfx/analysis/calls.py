"""A call by itself: the time until it returns, and the kernels that it launches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tlfx._torch import TorchDispatchMode

__all__ = ["count_kernels", "in_turn", "time_calls"]


def time_calls(calls: Mapping[str, Callable[[], None]], count: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds until each call returns, `count` times in turn. A call does not wait for the device: on a GPU, they are
    the work of the host."""

    def seconds(call: Callable[[], None]) -> float:
        """Seconds until a call returns, after earlier ones are done."""
        _synchronize(device)
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    times = in_turn(calls, count, seconds)
    _synchronize(device)
    return times


def in_turn(
    calls: Mapping[str, Callable[[], None]], count: int, seconds: Callable[[Callable[[], None]], float]
) -> dict[str, list[float]]:
    """The ``seconds`` of each call, `count` times, in rotation."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for names in _orders(list(calls), count):
        for name in names:
            times[name].append(seconds(calls[name]))
    return times


def _orders(names: list[str], count: int) -> Iterator[list[str]]:
    """`count` rotations of the names, so that each runs in each place.

    >>> list(_orders(["plain", "aligned"], 3))
    [['plain', 'aligned'], ['aligned', 'plain'], ['plain', 'aligned']]
    """
    for i in range(count):
        first = i % len(names)
        yield names[first:] + names[:first]


def count_kernels(call: Callable[[], None], device: torch.device, compiled: bool = False) -> int | None:
    """Number of kernels that a call launches on a GPU, or of its operators other than views on a CPU. None for a
    compiled call on a CPU, whose kernels torch does not count.

    >>> count_kernels(lambda: torch.ones(2).view(1, 2).exp(), torch.device("cpu"))  # ones, exp
    2
    """
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            _synchronize(device)
        names: list[str] = [e.name for e in profile.events() if e.device_type.name == "CUDA"]
        return len([name for name in names if not name.startswith(("Memcpy", "Memset"))])
    if compiled:
        return None
    operators = _Operators()
    with operators:
        call()
    return operators.count


class _Operators(TorchDispatchMode):
    """Counts the operators that are called inside, all but views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
