"""Workers: each model in a process of its own, so that one that crashes, hangs or swells harms no other."""

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
"""Seconds after its time limit when a worker ends by itself, should the sweep be no more."""


@dataclass(frozen=True)
class Task:
    """What is done with each model, and what it may use."""

    timeout: float
    """Seconds."""
    memory: int = 0
    """Bytes, 0 for no limit."""
    check: bool = False
    """Whether its invariants are measured too."""
    input_size: str | None = None
    """Size of the images where it is not the model's own."""
    rules: tuple[str, ...] = ()
    """Files of rules."""

    @property
    def options(self) -> list[str]:
        """The options of a worker."""
        options = ["--memory", str(self.memory), "--seconds", str(math.ceil(self.timeout) + GRACE)]
        options += ["--check"] if self.check else []
        options += ["--input-size", self.input_size] if self.input_size is not None else []
        return options + [option for file in self.rules for option in ("--rules", file)]


def sweep(names: Iterable[str], task: Task, jobs: int) -> Iterator[Row]:
    """The rows of models, as they come, ``jobs`` at a time; an interrupt ends those under way and starts no other."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(analyse, name, task) for name in names]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            for waiting in running:
                waiting.cancel()


def analyse(name: str, task: Task) -> Row:
    """The row of one model, from a process of its own. Nothing that the model does raises an error here."""
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
    """Why a process ended without a result."""
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit status {done.returncode}: {last}"
