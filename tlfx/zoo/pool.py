"""Worker processes, one for each model, so that a crash, hang or excessive memory use affects only one model."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from tlfx.zoo.table import Row

__all__ = ["Task", "analyse", "sweep"]


GRACE = 10
"""Seconds after its time limit at which a worker ends by itself, in case the sweep was killed."""


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

    @property
    def options(self) -> list[str]:
        """Command-line options of a worker."""
        options = ["--memory", str(self.memory), "--seconds", str(math.ceil(self.timeout) + GRACE)]
        options += ["--check"] if self.check else []
        options += ["--input-size", self.input_size] if self.input_size is not None else []
        return options + [option for file in self.rules for option in ("--rules", file)]


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
    command = [sys.executable, "-m", "tlfx.zoo.worker", name, *task.options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=task.timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "status": "timeout", "reason": f"not done after {task.timeout:g} s"}
    try:
        row = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"model": name, "status": "crashed", "reason": _cause(done)}
    return {"model": name} | {key: str(value) for key, value in row.items()}


def _cause(done: subprocess.CompletedProcess[str]) -> str:
    """The reason why a process ended without a result."""
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit status {done.returncode}: {last}"
