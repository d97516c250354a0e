"""The worker process of a sweep: it analyses one model and sends its row."""

# torch is imported after the memory limit is set: its import counts towards the limit.

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tlfx.errors import TlfxError
from tlfx.zoo.table import FIGURES, OPERATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["probe", "work"]


def work(sender: Connection, log: str, seconds: int, memory: int, *arguments: Any) -> None:
    """Send the row of a model; what the model prints goes to the file ``log``.

    Args:
        sender: the connection to the sweep.
        log: path of a file.
        seconds: time limit, after which the process ends by itself.
        memory: limit in bytes, 0 for no limit.
        arguments: those of :func:`probe`.
    """
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    _limit_memory(memory)
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
    sender.send(probe(*arguments))


def probe(name: str, check: bool = False, input_size: str | None = None, rules: Sequence[str] = ()) -> dict[str, Any]:
    """The row of a model; for a failure, its reason and the columns that were known before it.

    >>> probe("test_vit")["status"]
    'ok'
    """
    row: dict[str, Any] = {"status": "ok"}
    try:
        from tlfx.rules import use_rules

        with use_rules(*rules):
            _fill(row, name, check, input_size)
    except Exception as error:
        row |= {"status": _status(error), "reason": f"{type(error).__name__}: {_in_one_line(error)}"}
    return row


def _fill(row: dict[str, Any], name: str, check: bool, input_size: str | None) -> None:
    import torch

    from tlfx.zoo.models import load, parse_size, without_weights

    torch.set_num_threads(1)
    size = None if input_size is None else parse_size(input_size)

    def analyse(device: str) -> tuple[nn.Module, Tensor]:
        model, images = load(name, input_size=size, device=device)
        row["image"] = "x".join(map(str, images.shape[1:]))
        row["parameters"] = sum(p.numel() for p in model.parameters())
        _analyse(row, model, images)
        return model, images

    if check:
        _check(row, *analyse("cpu"))
    else:
        without_weights(analyse)


def _analyse(row: dict[str, Any], model: nn.Module, images: Tensor) -> None:
    """Add the number of nodes in all and by class, and the times; captured for any batch size as in ``align``."""
    from tlfx.trace import trace

    start = time.perf_counter()
    traced = trace(model, images)
    row["capture_seconds"] = round(time.perf_counter() - start, 2)
    row["nodes"] = len(traced.captured.graph_module.graph.nodes) - 1  # all but the output
    start = time.perf_counter()
    operations = traced.propagation.operations
    traced.rewrite()
    row["analysis_seconds"] = round(time.perf_counter() - start, 2)
    counts = Counter(operation.value for operation in operations.values())
    row |= {name: counts[name] for name in OPERATIONS}


def _check(row: dict[str, Any], model: nn.Module, images: Tensor) -> None:
    """Add the figures of the invariants; the status is failed if any is broken."""
    from tlfx.analysis.invariants import measure
    from tlfx.analysis.support import measure_support, measured

    size = tuple(images.shape[1:])
    support = measure_support(model, size)
    violations = measured(measure(model, size), support)
    row |= {c: float(f"{x:.1e}") for c, x in zip(FIGURES, [*(x for _, x in violations), support.missing], strict=True)}
    broken = [f"{invariant.name} {x:.1e}" for invariant, x in violations if x > invariant.tolerance]
    if broken:
        row |= {"status": "failed", "reason": f"broken invariants: {', '.join(broken)}"}


def _limit_memory(limit: int) -> None:
    """Make allocations beyond ``limit`` bytes fail, on systems with resource limits."""
    if not limit:
        return
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def _status(error: Exception) -> str:
    """``memory`` for an error caused by the memory limit, ``failed`` for an error of tlfx, else ``crashed``."""
    cause: BaseException | None = error
    while cause is not None:
        # Messages of allocators, and of the loader if the limit is too low to import torch.
        if isinstance(cause, MemoryError) or re.search("allocate memory|failed to map segment", str(cause)):
            return "memory"
        cause = cause.__cause__ or cause.__context__
    return "failed" if isinstance(error, TlfxError) else "crashed"


def _in_one_line(error: Exception) -> str:
    """The first line of a message and the module that it names, without file paths."""
    lines = str(error).splitlines() or ["no message"]
    modules = (line.strip() for line in lines[1:] if line.strip().startswith("module:"))
    where = next(modules, "").removeprefix("module:").strip()
    return f"{lines[0]} (in {where})" if where else lines[0]
