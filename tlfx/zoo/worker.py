"""The worker process of a sweep: ``python -m tlfx.zoo.worker NAME`` analyses one model and prints its row as JSON."""

# torch is imported after the memory limit is set: its import counts towards the limit.

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlfx.analysis.figures import INVARIANTS
from tlfx.errors import TlfxError
from tlfx.zoo.table import FIGURES, OPERATIONS

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["main", "probe"]


def main() -> None:
    """Print the row of a model to stdout; output of the model goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--memory", type=int, default=0, help="bytes, 0 for no limit")
    parser.add_argument("--seconds", type=int, default=0, help="time limit of the process, 0 for no limit")
    parser.add_argument("--check", action="store_true", help="measure the invariants too")
    parser.add_argument("--input-size", help="size of the images")
    parser.add_argument("--rules", action="append", default=[], help="file of rules")
    args = parser.parse_args()
    _limit_memory(args.memory)
    if hasattr(signal, "alarm"):
        signal.alarm(args.seconds)
    with contextlib.redirect_stdout(sys.stderr):
        row = probe(args.name, args.check, args.input_size, args.rules)
    print(json.dumps(row))


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

    from tlfx.zoo.models import load, parse_size

    torch.set_num_threads(1)
    model, images = load(name, input_size=None if input_size is None else parse_size(input_size))
    row["image"] = "x".join(map(str, images.shape[1:]))
    row["parameters"] = sum(p.numel() for p in model.parameters())
    _analyse(row, model, images)
    if check:
        _check(row, model, images)


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

    figures = measure(model, tuple(images.shape[1:]))
    row |= {c: float(f"{getattr(figures, i.name):.1e}") for c, i in zip(FIGURES, INVARIANTS, strict=True)}
    broken = [f"{i.name} {getattr(figures, i.name):.1e}" for i in INVARIANTS if not figures.holds(i)]
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


if __name__ == "__main__":
    main()
