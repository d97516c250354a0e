"""`examples/plugin` as its users have it: installed in a new environment, and found by tlfx there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from command import TIMEOUT

from tlfx.commands.cli import main

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"
MODEL = "tlfx_neighbourhood:classifier"
OPERATOR = "tlfx_neighbourhood.attention"
BUILT = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the plugin, and sees what this one has."""
    folder = tmp_path_factory.mktemp("plugin")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    executable = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    (site,) = (folder / "venv").glob("**/site-packages")
    own = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    lines = [f"import site; site.addsitedir({path!r})" for path in own]
    (site / "beside.pth").write_text("\n".join(lines) + "\n")
    source = shutil.copytree(PLUGIN, folder / "source", ignore=BUILT)  # a build leaves files beside its sources
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    run(sys.executable, "-m", "pip", "--python", str(executable), "install", *options, str(source))
    return executable


def run(*command: str, cwd: Path | None = None) -> str:
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=settings, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answers(python: Path) -> list[Any]:
    """What the rules, check and inspect commands answer, one after another in a process that sees the plugin."""
    commands = [["rules"], ["check", MODEL], ["inspect", MODEL]]
    code = f"from tlfx.commands.cli import main\nfor c in {commands}: assert main([*c, '--json']) == 0; print('\x1e')"
    return [json.loads(answer) for answer in run(str(python), "-c", code).split("\x1e\n")[:-1]]


@pytest.mark.slow
def test_rules_name_operator_plugin_and_package(answers: list[Any]) -> None:
    rows = {row["operator"]: row for row in answers[0]}
    plugin = {"plugin": "neighbourhood", "package": "tlfx-neighbourhood 0.1.0"}
    rules = "tlfx_neighbourhood.rules"
    assert rows[OPERATOR] == {"operator": OPERATOR, "rule": f"{rules}.neighbourhood_attention", **plugin}
    assert rows["Smoothing"] == {"operator": "Smoothing", "rule": f"{rules}.smoothing", **plugin}
    assert rows["aten.linear"]["plugin"] == "builtin"


@pytest.mark.slow
def test_its_model_is_aligned_exactly(answers: list[Any]) -> None:
    answer = answers[1]
    assert answer["passed"]
    assert all(row["figure"] == 0 for row in answer["invariants"] if row["name"] in ("logits", "gradients", "buffers"))


@pytest.mark.slow
def test_its_operators_mix_tokens(answers: list[Any]) -> None:
    nodes = answers[2]["nodes"]
    attention = [n for n in nodes if n["operator"].startswith(OPERATOR)]
    smoothing = [n for n in nodes if n["module_class"] == "Smoothing" and n["class"] != "constant"]
    for operation in (attention, smoothing):
        assert [n["class"] for n in operation] == ["spatial_mix"] * 2
        assert {n["why"] for n in operation} == {"mixes tokens by weights that its rule computes"}


@pytest.mark.slow
def test_its_own_tests_pass(python: Path) -> None:
    tests = shutil.copytree(PLUGIN / "tests", python.parents[2] / "tests", ignore=BUILT)
    shown = run(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), cwd=tests)
    assert " passed" in shown


def test_without_its_rules_the_operator_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", MODEL, "--path", str(PLUGIN)]) == 2
    shown = capsys.readouterr().err
    assert f"no rule for the operator {OPERATOR}" in shown
    assert "module: blocks.0.attention (Attention)" in shown


def test_its_rules_by_file(capsys: pytest.CaptureFixture[str]) -> None:
    file = PLUGIN / "tlfx_neighbourhood" / "rules.py"
    assert main(["inspect", MODEL, "--path", str(PLUGIN), "--rules", str(file), "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert [n["class"] for n in nodes if n["operator"].startswith(OPERATOR)] == ["spatial_mix"] * 2
