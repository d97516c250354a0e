"""Runs of `segment.py` and `detect.py` in new processes, and what they leave in their folders."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

KILLER = """
import os, signal, sys
sys.path.insert(0, {examples!r})
import {script}
update = {script}.RunTrainer.update

def killed(self, batches, numbers, epoch, done):
    if done == {update} and self.processes.primary:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, batches, numbers, epoch, done)

{script}.RunTrainer.update = killed
{script}.main()
"""


def run(script: Path, *arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script in new processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table, without the speed."""
    with file.open(newline="") as text:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(text)]


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights in the last checkpoint of a run."""
    state: dict[str, Tensor] = torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"]
    return state
