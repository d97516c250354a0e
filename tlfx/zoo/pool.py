"""Worker processes, one for each model, so that a crash, hang or excessive memory use affects only one model."""

from __future__ import annotations

import math
import multiprocessing
import signal
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tlfx.zoo.table import Row
from tlfx.zoo.worker import work

__all__ = ["Task", "analyse", "sweep"]


GRACE = 10
"""Seconds after its time limit at which a worker ends by itself, in case the sweep was killed."""
PRELOADED = ["tlfx.zoo.preload", "timm"]
"""Modules that are imported once for all workers, where a server can fork them; timm only if it is installed."""


@dataclass(frozen=True)
class Task:
    """The analysis of each model, and its limits."""

    timeout: float
    """Time limit in seconds."""
    memory: int = 0
    """Memory limit in bytes, 0 for no limit."""
    check: bool = False
    """Whether to measure the invariants too."""
    input_size: str | None = None
    """Size of the images; None for the size of each model."""
    rules: tuple[str, ...] = ()
    """Files of rules."""


def sweep(names: Iterable[str], task: Task, jobs: int) -> Iterator[Row]:
    """Yield the rows of models as they finish, ``jobs`` in parallel; after an interrupt, no further model starts."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(analyse, name, task) for name in names]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            for waiting in running:
                waiting.cancel()


def analyse(name: str, task: Task) -> Row:
    """The row of one model, from a separate process. Errors of the model become part of the row."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.touch()
        limits = sender, str(log), math.ceil(task.timeout) + GRACE, task.memory
        worker = context.Process(target=work, args=(*limits, name, task.check, task.input_size, task.rules))
        worker.start()
        sender.close()  # the end of the worker is then the end of the connection
        try:
            return {"model": name} | _row(receiver, task.timeout)
        except EOFError:
            worker.join()
            return {"model": name, "status": "crashed", "reason": _cause(worker.exitcode or 0, log)}
        finally:
            worker.kill()
            worker.join()
            receiver.close()


def _context() -> Any:
    """How workers start: forked by a server that has imported what they need, or anew on systems that do not fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _row(receiver: Connection, timeout: float) -> Row:
    """The row that a worker sends. Raises EOFError if it ends without one."""
    if not receiver.poll(timeout):
        return {"status": "timeout", "reason": f"not done after {timeout:g} s"}
    return {key: str(value) for key, value in receiver.recv().items()}


def _cause(status: int, log: Path) -> str:
    """The reason why a process ended without a row."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
    return f"exit status {status}: {last}"
