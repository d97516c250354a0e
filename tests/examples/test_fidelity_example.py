"""`examples/fidelity.py` on two small runs, and the figures of its tables."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from tlfx.analysis import Fidelity, fidelity

RULES = ("area", "paper", "residual=skip", "residual=norm", "heads=norm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of a mixer, one that was interrupted, and one of another method."""
    from compare import parse
    from experiment import execute

    folder = tmp_path_factory.mktemp("runs")
    tiny = ["--epochs", "1", "--train", "32", "--test", "20", "--device", "cpu", "--architectures", "mixer"]
    for run in parse([*tiny, "--methods", "plain", "--seeds", "2", "--output", str(folder)]).runs:
        execute(run, folder)
    whole = folder / "mixer" / "plain" / "1.json"
    (folder / "mixer" / "plain" / "2.json").write_text(whole.read_text()[:50])
    other = folder / "mixer" / "aligned" / "1.json"
    other.parent.mkdir()
    other.write_text(whole.read_text().replace('"plain"', '"aligned"'))
    return folder


@pytest.mark.slow
def test_finished_runs_are_measured(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from architectures import build
    from data import load_digits
    from fidelity import main

    options = ("--runs", runs, "--markdown", tmp_path / "table.md", "--csv", tmp_path / "all.csv")
    monkeypatch.setattr(sys, "argv", ["fidelity.py", *map(str, options)])
    monkeypatch.setenv("COLUMNS", "140")
    main()
    shown = capsys.readouterr().out
    lines = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert {(line["architecture"], line["seed"]) for line in lines} == {("mixer", "0"), ("mixer", "1")}
    model = build("mixer", 5)
    model.load_state_dict(torch.load(runs / "mixer" / "plain" / "1.pt"))
    np.random.seed(1)
    own = fidelity(model, load_digits(32, 20, size=28)[1].batches(20, 1, shuffle=True))
    measured = [line for line in lines if line["seed"] == "1"]
    assert [(x["reference"], x["rule"]) for x in measured] == [(x.reference, x.rule) for x in own.rows]
    for line, row in zip(measured, own.rows, strict=True):
        assert int(line["pairs"]) == row.agreement.pairs
        assert float(line["rmse"]) == pytest.approx(row.agreement.rmse, abs=1e-4)  # threads may round otherwise

    errors = [float(x["rmse"]) for x in lines if (x["reference"], x["rule"]) == ("exchange", "paper")]
    half = stats.t.ppf(0.975, 1) * np.std(errors, ddof=1) / math.sqrt(2)
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("- mixer: 2 seeds, ")
    rmse = table.partition("RMSE:")[2]
    assert f"| {np.mean(errors):.3f} ± {half:.3f} |" in next(x for x in rmse.splitlines() if "| paper |" in x)
    assert (
        "| mixer | heads=norm | as paper | as paper | as paper | as paper | as paper |" in table
    )  # a mixer has no heads
    for words in ("Correlation", "Partial correlation given the area", "RMSE", "excludes 0"):
        assert words in shown
        assert words in table


def studies(seeds: int, wins: float) -> dict[int, Fidelity]:
    """Made-up shares: that of the paper has an error, residual=skip a larger one by much, residual=norm one that is
    less by ``wins`` in every seed, heads=norm the paper's own."""
    fidelities = {}
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        truth, error, area = torch.rand(3, 200, generator=draw)
        paper = truth + 0.2 * error
        errors = (area, paper, truth + 0.5 * error, truth + (0.2 - wins) * error, paper.clone())
        fidelities[seed] = Fidelity(dict(zip(RULES, errors, strict=True)), {"exchange": truth})
    return fidelities


def cells(fidelities: dict[int, Fidelity], statistic: str) -> dict[str, str]:
    from fidelity import rows

    return {rule: cell for _, rule, cell in rows({"vit": fidelities}, statistic)}


@pytest.mark.parametrize("statistic", ["correlation", "rmse"])
def test_arrows_are_intervals_that_leave_out_zero(statistic: str) -> None:
    fidelities = studies(4, wins=0.1)
    shown = cells(fidelities, statistic)

    def figures(rule: str) -> np.ndarray:
        return np.array([getattr(study.agreement(rule, "exchange"), statistic) for study in fidelities.values()])

    for rule in RULES[:4]:
        low, high = stats.t.interval(0.95, 3, figures(rule).mean(), stats.sem(figures(rule)))
        arrow = ""
        if rule != "paper":
            interval = stats.ttest_rel(figures(rule), figures("paper")).confidence_interval(0.95)
            more = interval.low > 0
            arrow = "" if interval.low <= 0 <= interval.high else " ↑" if more == (statistic != "rmse") else " ↓"
        assert shown[rule] == f"{(low + high) / 2:.3f} ± {(high - low) / 2:.3f}{arrow}"
    assert [shown[rule][-1] for rule in RULES[2:4]] == ["↓", "↑"]
    assert shown["heads=norm"] == "as paper"


def test_one_seed_has_no_interval() -> None:
    assert cells(studies(1, 0.1), "rmse")["residual=norm"].count(" ") == 0
    assert cells(studies(3, 0.1), "partial")["area"] == "–"


def refused(arguments: list[str]) -> Any:
    from fidelity import find_runs, parse

    return find_runs(parse(arguments))


def test_no_runs(tmp_path: Path) -> None:
    words = (
        rf"{tmp_path} holds no finished run; train some with python examples/compare.py --methods plain "
        rf"--architectures vit mixer --output {tmp_path} --weights"
    )
    with pytest.raises(SystemExit, match=words):
        refused(["--runs", str(tmp_path), "--architectures", "vit", "mixer"])


def test_runs_of_two_recipes(runs: Path, tmp_path: Path) -> None:
    for seed, rate in ((0, 1e-3), (1, 2e-3)):
        file = tmp_path / "mixer" / "plain" / f"{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        record = json.loads((runs / "mixer" / "plain" / f"{seed}.json").read_text())
        record["recipe"]["lr"] = rate
        file.write_text(json.dumps(record))
        file.with_suffix(".pt").touch()
    with pytest.raises(SystemExit, match="holds runs of 2 recipes, whose figures cannot be averaged: pass --architec"):
        refused(["--runs", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "7"], "--batch-size 7: expected an even number, because pictures are mixed in pairs"),
        (["--csv", "no/such/file.csv"], "there is no folder 'no/such' to write file.csv into; create it first"),
        (["--method", "align"], "'align' is not a method: expected [MIXER/]TARGET or [MIXER/]aligned:FIELD=VALUE"),
    ],
)
def test_settings_that_cannot_be_run(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fidelity import parse

    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert words in capsys.readouterr().err
