"""The command line, run in this process, in a new process, and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import NoReturn
from unittest.mock import patch

import torch

from tlfx.commands.cli import main

TIMEOUT = 300
"""Seconds; a command takes a few, but the machine may be busy."""


def tlfx(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, where torch is imported already, and return what it prints, and its status."""
    out, err = io.StringIO(), io.StringIO()
    settings = _settings(**environment)
    with patch.dict(os.environ, settings, clear=True), redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(list(arguments), status, out.getvalue(), err.getvalue())


def tlfx_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tlfx`` with its output in pipes."""
    command = [sys.executable, "-m", "tlfx", *arguments]
    settings = _settings(**environment)
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=settings)


def tlfx_on_a_terminal(*arguments: str, rows: int, columns: int, **environment: str) -> str:
    """Run a command on a new terminal, in a fork of this process, and return all that it shows."""
    settings = _settings(TERM="xterm-256color", **environment)
    process, ours = pty.fork()
    if process == 0:
        _run_on_terminal(list(arguments), (rows, columns), settings)
    shown = b"".join(_chunks(ours))
    assert os.waitpid(process, 0)[1] == 0
    return shown.decode().replace("\r\n", "\n")


def _run_on_terminal(arguments: list[str], size: tuple[int, int], settings: dict[str, str]) -> NoReturn:
    """In the fork: its files 0, 1 and 2 are the terminal, whose size is set before anything is written."""
    status = 1
    signal.alarm(TIMEOUT)
    torch.set_num_threads(1)  # a fork has no other threads
    try:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.environ.clear()
        os.environ.update(settings)
        for file, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
            setattr(sys, name, open(file, mode, closefd=False))  # noqa: SIM115
        status = main(arguments)
        sys.stdout.flush()
    finally:
        os._exit(status)  # without the clean-up of the test runner


def _chunks(terminal: int) -> Iterator[bytes]:
    """What a terminal is given, until no process holds it."""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as file:
        while chunk := file.read(4096):
            yield chunk


def _settings(**environment: str) -> dict[str, str]:
    """The environment, but for the size of a terminal that a test runner may tell its own processes."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    return {**inherited, "OMP_NUM_THREADS": "1", **environment}
