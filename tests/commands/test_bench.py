"""``tlfx bench`` : ratios, what happens before the first step, bad numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import tlfx, tlfx_process

QUICK = ("--batch", "2", "--pairs", "2", "--device", "cpu", "--threads", "1")
TWO = """
from torch import nn

class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

class Smaller(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 10, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
SMALL = ("--kwargs", '{"img_size": 32, "num_classes": 4}')


def test_a_table_of_ratios(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    options = ("--path", str(tmp_path), "--input-size", "16", *QUICK)
    done = tlfx_process("bench", "two:Small", "two:Smaller", *options)  # a new one, because profilers may print
    assert done.returncode == 0, done.stderr
    assert "training step, batch 2, float32, cpu, 2 pairs" in done.stdout
    words = ("two:Small ", "two:Smaller ", "plain", "captured", "aligned")
    assert [done.stdout.count(word) for word in words] == [1, 1, 2, 2, 2]
    assert done.stderr == ""


@pytest.mark.slow
def test_ratios_as_json() -> None:
    done = tlfx("bench", "test_vit", *SMALL, "--json", "--forward", "--dtype", "bfloat16", *QUICK)
    rows = json.loads(done.stdout)["test_vit"]
    assert rows["plain"]["ratio"] == 1.0
    assert set(rows["aligned"]) == {"ratio", "spread", "images_per_second", "memory_ratio", "memory_bytes"}
    assert rows["aligned"]["ratio"] > 0


def test_bad_numbers_are_refused() -> None:
    done = tlfx("bench", "test_vit", "--pairs", "0")
    assert done.returncode == 2
    assert "--batch, --pairs, --steps and --threads must be positive" in done.stderr


@pytest.mark.slow
def test_what_happens_before_the_first_step() -> None:
    done = tlfx("bench", "test_vit", *SMALL, "--capture", "--json")
    found = json.loads(done.stdout)["test_vit"]
    stages = ("capture", "propagate", "rewrite")
    assert all(found[stage] > 0 for stage in stages)
    assert abs(sum(found[stage] for stage in stages) - found["seconds"]) < 1e-6
    assert found["operators"] > 50
    assert found["memory"] >= 0
    assert "analysis memory" in tlfx("bench", "test_resnet", "--input-size", "32", "--capture").stdout
