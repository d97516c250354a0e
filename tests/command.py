"""The command line as its users meet it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

TIMEOUT = 300
"""Seconds; a command takes a few, but the machine may be busy."""


def tlfx(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tlfx`` with its output in pipes."""
    command = [sys.executable, "-m", "tlfx", *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=settings)
