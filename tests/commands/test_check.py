"""``tlfx check``: a table or JSON, and an exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import tlfx

from tlfx.analysis.figures import INVARIANTS
from tlfx.analysis.support import SUPPORT
from tlfx.commands.cli import main

COUNTING = """
import os
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.calls = 1

    def forward(self, images):
        COUNT
        return super().forward(images) / int(os.environ["TLFX_CALLS"])
"""

MIXING = """
from torch import nn

class Net(nn.Module):
    def forward(self, images):
        x = images.flatten(1)
        return (x @ x.T).softmax(-1) @ x
"""


def test_a_sound_model(tmp_path: Path) -> None:
    source = COUNTING.replace("COUNT", "self.calls += 0", 1).replace('int(os.environ["TLFX_CALLS"])', "self.calls")
    (tmp_path / "shown_model.py").write_text(source)
    done = tlfx("check", "shown_model:Net", "--path", str(tmp_path), "--input-size", "16")
    assert done.returncode == 0, done.stderr
    assert "shown_model:Net: all invariants hold" in done.stdout
    assert done.stdout.count(" pass ") == len(INVARIANTS) + 1
    assert SUPPORT.statement in done.stdout
    assert "Every part of the image that an output depends on is in its label." in done.stdout
    assert all(i.statement in done.stdout for i in INVARIANTS)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = COUNTING.replace("COUNT", "self.calls += 0", 1).replace('int(os.environ["TLFX_CALLS"])', "self.calls")
    (tmp_path / "sound_model.py").write_text(source)
    options = ("--path", str(tmp_path), "--input-size", "16", "--json", "--seed", "3")
    assert main(["check", "sound_model:Net", *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"] == "sound_model:Net"
    assert data["passed"] is True
    assert [row["name"] for row in data["invariants"]] == [i.name for i in (*INVARIANTS, SUPPORT)]
    assert all(row["passed"] and row["figure"] <= row["tolerance"] for row in data["invariants"])


def test_a_broken_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLFX_CALLS", "1")
    count = 'os.environ["TLFX_CALLS"] = str(int(os.environ["TLFX_CALLS"]) + 1)'
    (tmp_path / "counting_model.py").write_text(COUNTING.replace("COUNT", count, 1))
    assert main(["check", "counting_model:Net", "--path", str(tmp_path), "--input-size", "16"]) == 1
    out = capsys.readouterr().out
    assert "invariants are broken" in out
    assert "FAIL" in out


def test_state_that_cannot_be_repeated_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = COUNTING.replace("COUNT", "self.calls += 1", 1).replace('int(os.environ["TLFX_CALLS"])', "self.calls")
    (tmp_path / "attribute_model.py").write_text(source)
    assert main(["check", "attribute_model:Net", "--path", str(tmp_path), "--input-size", "16"]) == 2
    assert "the forward of Net changes calls at each call otherwise" in capsys.readouterr().err


def test_samples_that_mix_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mixing_model.py").write_text(MIXING)
    assert main(["check", "mixing_model:Net", "--path", str(tmp_path), "--input-size", "16"]) == 2
    assert "labels belong to one sample each" in capsys.readouterr().err
