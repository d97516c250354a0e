"""``tlfx bench`` : ratios, what happens before the first step, bad numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from command import tlfx, tlfx_process

import tlfx as package
from tlfx.analysis.speed import Settings
from tlfx.commands.suite import Case, cases_of, cells, data, measure

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


@pytest.mark.slow
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
    shares = {"ratio", "spread", "images_per_second", "memory_ratio", "memory_bytes"}
    assert set(rows["aligned"]) == shares | {"call_milliseconds", "kernels", "first_step_seconds"}
    assert rows["aligned"]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test_vit", "--pairs", "0"], "--batch, --pairs, --steps and --threads must be positive"),
        ([], "expected one or more MODELs, or --suite without MODEL"),
        (["test_vit", "--suite"], "expected one or more MODELs, or --suite without MODEL"),
        (["test_vit", "--markdown", "x.md"], "--markdown writes the table of --suite: pass --suite, or --json"),
        (["--suite", "--markdown", "/nowhere/x.md"], "--markdown '/nowhere/x.md' cannot be written"),
        (["test_vit", "--policy", "norm"], "'norm' is not a policy: expected 'paper', 'influence' or FIELD=VALUE"),
        (["test_vit", "--policy", "residual=sum"], "residual='sum'"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str) -> None:
    done = tlfx("bench", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_case_of_the_suite() -> None:
    settings = Settings(batch=2, pairs=1, warm_up=0, policy=package.Policy(residual="norm"))
    case = Case("test_vit", settings, {"img_size": 32, "depth": 1}, 32, bar=1.03, call_bar=0.15)
    assert case.title == "test_vit, 32 px, batch 2, residual=norm"
    measured = measure(case, "cpu")
    plain, captured, aligned = (measured.timings[name] for name in ("plain", "captured", "aligned"))
    assert measured.ratio == aligned.ratio
    assert measured.added_call == pytest.approx((aligned.call - captured.call) / plain.call)
    assert measured.compile_ratio is None
    assert cells(measured)[4] == "1.03"
    assert cells(measured)[8] == f"{plain.kernels} → {aligned.kernels}"
    row = data(measured)
    assert (row["limit"], row["labels_add_limit"], row["compile_ratio"]) == (1.03, 0.15, None)
    assert row["labels_add"] == round(measured.added_call, 4)
    assert row["aligned"]["kernels"] == aligned.kernels


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_models_of_the_suite_exist(device: str) -> None:
    cases = cases_of(device)
    assert len({case.title for case in cases}) == len(cases)
    assert {case.model for case in cases} <= {*timm.list_models()}


@pytest.mark.slow
def test_the_suite(tmp_path: Path) -> None:
    done = tlfx("bench", "--suite", "--device", "cpu", "--threads", "1", "--json", "--markdown", str(tmp_path / "x.md"))
    assert done.returncode == 0, done.stderr
    titles = [case.title for case in cases_of("cpu")]
    assert [row["case"] for row in json.loads(done.stdout)] == titles
    table = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert all(f"| {title} |" in table for title in titles)


@pytest.mark.slow
def test_what_happens_before_the_first_step() -> None:
    done = tlfx("bench", "test_vit", *SMALL, "--capture", "--json")
    stages_of_model = json.loads(done.stdout)["test_vit"]
    stages = ("capture", "propagate", "rewrite")
    assert all(stages_of_model[stage] > 0 for stage in stages)
    assert abs(sum(stages_of_model[stage] for stage in stages) - stages_of_model["seconds"]) < 1e-6
    assert stages_of_model["operators"] > 50
    assert stages_of_model["memory"] >= 0
    assert "analysis memory" in tlfx("bench", "test_resnet", "--input-size", "32", "--capture").stdout
