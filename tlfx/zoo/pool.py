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

__all__ = ["Limits", "analyse", "sweep"]


GRACE = 10
"""Seconds after its time limit when a worker ends by itself, should the sweep be no more."""


@dataclass(frozen=True)
class Limits:
    """What one model may use: seconds and bytes (0 for no limit); whether its invariants are measured too; and files of
    rules."""

    timeout: float
    memory: int = 0
    check: bool = False
    rules: tuple[str, ...] = ()


def sweep(names: Iterable[str], limits: Limits, jobs: int) -> Iterator[Row]:
    """The rows of models, as they come, ``jobs`` at a time; an interrupt ends those under way and starts no other."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(analyse, name, limits) for name in names]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            for waiting in running:
                waiting.cancel()


def analyse(name: str, limits: Limits) -> Row:
    """The row of one model, from a process of its own. Nothing that the model does raises an error here."""
    seconds = math.ceil(limits.timeout) + GRACE
    options = ["--memory", str(limits.memory), "--seconds", str(seconds), *(["--check"] if limits.check else [])]
    options += [option for file in limits.rules for option in ("--rules", file)]
    command = [sys.executable, "-m", "tlfx.zoo.worker", name, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limits.timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "status": "timeout", "reason": f"not done after {limits.timeout:g} s"}
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
