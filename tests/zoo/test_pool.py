"""Workers that fail, crash, hang or swell become rows, and end nothing but themselves."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import slow_except

from tlfx.zoo.pool import Task, analyse, sweep
from tlfx.zoo.worker import work

SOURCE = """
import ctypes, os, signal, time
import torch
from torch import nn

class Good(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        print("models may print")

class Mixes(nn.Module):
    def forward(self, x):
        x = x.flatten(1)
        return (x @ x.T).softmax(-1) @ x

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def crashes():
    ctypes.string_at(0)

def leaves():
    os._exit(3)

def hangs():
    time.sleep(600)

def swells():
    model = Good()
    model.register_buffer("table", torch.zeros(2**16, 2**16, device="cpu"))
    return model
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo_models.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


FOUND = {
    "Good": ("ok", ""),
    "Mixes": ("failed", "ProvenanceError: "),
    "killed": ("crashed", "killed by SIGKILL"),
    "crashes": ("crashed", "killed by SIGSEGV"),
    "leaves": ("crashed", "exit status 3"),
    "swells": ("memory", ""),
}
"""Status and the beginning of the reason."""


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "names",
    slow_except([["killed"]], [["killed"], ["Good", "leaves"], ["Mixes", "crashes", "swells"]]),
    ids=" ".join,
)
def test_each_model_has_its_row(names: list[str]) -> None:
    task = Task(timeout=300, memory=3 * 2**30)
    rows = {
        row["model"].removeprefix("zoo_models:"): row for row in sweep([f"zoo_models:{n}" for n in names], task, jobs=2)
    }
    assert set(rows) == set(names)
    for name, row in rows.items():
        status, reason = FOUND[name]
        assert row["status"] == status
        assert row.get("reason", "").startswith(reason)
    if "Good" in names:
        good = rows["Good"]
        assert good.get("reason", "") == ""
        assert (good["nodes"], good["aggregation"], good["spatial_mix"], good["parameters"]) == ("6", "2", "0", "196")


@pytest.mark.usefixtures("place")
@pytest.mark.slow
def test_a_model_that_hangs() -> None:
    row = analyse("zoo_models:hangs", Task(timeout=2))
    assert row == {"model": "zoo_models:hangs", "status": "timeout", "reason": "not done after 2 s"}


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs signals of POSIX")
@pytest.mark.usefixtures("place")
@pytest.mark.slow
def test_a_worker_whose_sweep_is_gone_ends_by_itself(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    (tmp_path / "log").touch()
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=work, args=(sender, str(tmp_path / "log"), 2, 0, "zoo_models:hangs"))
    worker.start()
    worker.join(timeout=60)
    assert worker.exitcode == -signal.SIGALRM
    assert not receiver.poll()


@pytest.mark.usefixtures("place")
@pytest.mark.slow
def test_workers_of_systems_that_do_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert analyse("zoo_models:Good", Task(timeout=300))["status"] == "ok"


def test_the_limit_on_memory_holds_before_torch_is_there() -> None:
    code = "import sys, tlfx.zoo.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
