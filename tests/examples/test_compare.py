"""`examples/compare.py` as a user runs it, interrupted and resumed, and the figures of its table."""

from __future__ import annotations

import doctest
import importlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import EXAMPLES
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

import tlfx

TINY = ["--epochs", "1", "--train", "32", "--test", "20", "--mix-prob", "1", "--device", "cpu"]
TINY += ["--architectures", "mixer", "--batch-size", "16", "--lr", "0.002", "--methods", "plain", "aligned"]
TIMEOUT = 300


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / "compare.py"), *TINY, *within(*arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def settings(*arguments: str | Path) -> Any:
    from compare import parse

    return parse([*TINY, *within(*arguments)])


def within(*arguments: str | Path) -> list[str]:
    """The arguments, and the file of figures in the folder --output, if there is one."""
    words = [str(argument) for argument in arguments]
    folders = [Path(words[place + 1]) for place, word in enumerate(words) if word == "--output"]
    return [*words, *(word for folder in folders for word in ("--figures", str(folder / "figures.csv")))]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small comparison: two seeds of two methods, and the table."""
    from compare import main

    folder, shown = tmp_path_factory.mktemp("runs"), io.StringIO()
    options = ("--seeds", "2", "--output", folder, "--markdown", folder / "table.md")
    before = signal.getsignal(signal.SIGTERM)  # which it sets for itself
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.setattr(sys, "argv", ["compare.py", *TINY, *within(*options)])
        main()
    signal.signal(signal.SIGTERM, before)
    assert "mixer aligned, seed 1" in shown.getvalue()
    return folder


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path: Path) -> None:
    """Very many runs, interrupted when two are finished; then fewer, with the weights of a file cut in half."""
    process = start("--methods", "plain", "--seeds", "500", "--output", tmp_path)
    half, whole = (tmp_path / "mixer" / "plain" / f"{seed}.json" for seed in (0, 1))
    deadline = time.monotonic() + TIMEOUT
    while not (half.exists() and whole.exists()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)  # also waits for the workers, which share the pipes
    assert process.returncode == 1
    assert errors.strip().endswith("interrupted; finished runs are kept, and the same command trains the others")
    assert len(list(tmp_path.rglob("*.json"))) < 500

    before, kept = half.read_text(), whole.stat().st_mtime_ns
    half.write_text(before[: len(before) // 2])
    process = start("--seeds", "2", "--jobs", "2", "--weights", "--output", tmp_path)
    shown, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert "mixer plain, seed 0" in shown
    assert "mixer aligned, seed 1" in shown
    assert "mixer plain, seed 1" not in shown
    assert whole.stat().st_mtime_ns == kept
    again, first = (json.loads(text)["result"] for text in (half.read_text(), before))
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in first.items() if "seconds" not in k
    }


def accuracies(folder: Path, method: str) -> list[float]:
    """Of seeds 0 and 1, in percent."""
    records = [json.loads((folder / "mixer" / method / f"{seed}.json").read_text()) for seed in (0, 1)]
    return [100 * record["result"]["accuracy"] for record in records]


@pytest.mark.slow
def test_a_run_is_kept_with_its_weights(compared: Path) -> None:
    from architectures import build
    from data import load_digits
    from training import accuracy

    _, test = load_digits(32, 20, size=28)
    for method in ("plain", "aligned"):
        file = compared / "mixer" / method / "1.json"
        record = json.loads(file.read_text())
        assert (record["architecture"], record["method"], record["recipe"]["seed"]) == ("mixer", method, 1)
        model = build("mixer", 0)
        rounds = record["recipe"]["rounds"]
        assert accuracy(model, test, torch.device("cpu"), rounds) != record["result"]["accuracy"]
        model.load_state_dict(torch.load(file.with_suffix(".pt")))
        assert accuracy(model, test, torch.device("cpu"), rounds) == record["result"]["accuracy"]
        assert record["result"]["lambda_gap"] > 0.0 if method == "aligned" else record["result"]["lambda_gap"] == 0.0


@pytest.mark.slow
def test_the_table_holds_the_figures(compared: Path) -> None:
    from architectures import build

    plain, aligned = (np.array(accuracies(compared, method)) for method in ("plain", "aligned"))
    low, high = stats.ttest_rel(aligned, plain).confidence_interval(0.95)
    lines = (compared / "table.md").read_text().splitlines()
    assert lines[0] == (
        "| architecture | method | runs | accuracy, % | difference (95 % interval) | seeds won | sign test, p | λ gap "
        "| parameters | images/s |"
    )
    parameters = sum(p.numel() for p in build("mixer", 0).parameters())
    assert lines[2].startswith(
        f"| mixer | plain | 2 | {plain.mean():.1f} ± {plain.std(ddof=1):.1f} | – | – | – | 0.000 | {parameters:,} | "
    )
    seconds = [json.loads((compared / f"mixer/plain/{s}.json").read_text())["result"]["train_seconds"] for s in (0, 1)]
    assert int(lines[2].split("|")[-2]) == round(float(np.median([32 / s for s in seconds])))
    difference = f"{(aligned - plain).mean():+.1f} ({low:+.1f} to {high:+.1f})"
    assert lines[3].startswith(
        f"| mixer | aligned | 2 | {aligned.mean():.1f} ± {aligned.std(ddof=1):.1f} | {difference} | "
        f"{(aligned > plain).sum()} of 2 | "
    )


@pytest.mark.slow
def test_the_first_method_is_the_baseline(compared: Path) -> None:
    from compare import rows

    options = ("--seeds", "3", "--output", compared)
    (_, aligned, _, _, none, *_), (_, plain, runs, _, difference, *_) = rows(
        settings("--methods", "aligned", "plain", *options)
    )
    assert (aligned, none) == ("aligned", "–")
    assert (plain, int(runs)) == ("plain", len(list((compared / "mixer" / "plain").glob("[012].json"))))
    expected = np.mean(accuracies(compared, "plain")) - np.mean(accuracies(compared, "aligned"))
    assert difference.startswith(f"{expected:+.1f} (")


def test_the_rows_of_table_2(tmp_path: Path) -> None:
    """Seven names, and the parameters of the network that Attentive CutMix has beside the model."""
    from architectures import build
    from compare import rows

    shown = rows(settings("--table", "2", "--architectures", "vit", "--output", tmp_path))
    names = ["Vanilla", "CutMix", "Puzzle-Mix", "SaliencyMix", "Attentive-CutMix", "TransMix", "CutMix + TL-Align"]
    assert [row[1] for row in shown] == names
    own, other = (sum(p.numel() for p in build(name, 0).parameters()) for name in ("vit", "convnext"))
    assert [row[8] for row in shown] == [f"{own + other if 'Attentive' in name else own:,}" for name in names]


@pytest.mark.slow
def test_layers_a_scale_and_a_blend_of_aligned_targets() -> None:
    """Labels of one attention layer, a loss whose gradients are scaled with its targets, and half of the gap."""
    from architectures import build
    from methods import Method
    from mixers import MIXERS
    from training import DigitTrainer

    run = settings("--methods", "plain").runs[0]
    gradients, gaps = {}, {}
    for text in ("aligned", "aligned:layers=-1", "aligned:scale=4", "aligned:blend=0.5"):
        method = Method.parse(text)
        assert str(method) == text
        model = method.prepare(build("vit", 0))
        trainer = DigitTrainer(model, run.recipe, MIXERS["cutmix"](model, run.recipe), method.scale, method.blend)
        np.random.seed(0)
        trainer.loss(torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(4)).backward()
        gradients[text], gaps[text] = model.head.weight.grad, trainer.meter.lambda_gap
    torch.testing.assert_close(gradients["aligned:scale=4"], 4 * gradients["aligned"])
    assert gaps["aligned:scale=4"] == gaps["aligned"] != gaps["aligned:layers=-1"]
    assert gaps["aligned:blend=0.5"] == pytest.approx(gaps["aligned"] / 2, abs=1e-7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("aligned:layers=last", "'aligned:layers=last': layers=last is not a list of attention layers, such as 1"),
        ("aligned:scale=0", "'aligned:scale=0': scale=0 is not a positive number"),
        ("aligned:scale=x", "scale=x is not a positive number"),
        ("aligned:blend=2", "'aligned:blend=2': blend=2 is neither a share from 0 to 1 nor agreement"),
        ("aligned:blend=x", "blend=x is neither a share"),
        ("aligned:rate=2", "'rate=2' is not a field of tlfx.Policy; expected one of residual, .*, scale, blend"),
        ("plain:layers=1", "'plain:layers=1' is not a method"),
    ],
)
def test_methods_that_are_refused(text: str, words: str) -> None:
    from methods import Method

    with pytest.raises(ValueError, match=words):
        Method.parse(text)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    from experiment import SettingsError, execute, finished

    execute(settings("--output", tmp_path).runs[0], tmp_path)
    run = settings("--output", tmp_path, "--lr", "0.01", "--batch-size", "8").runs[0]
    words = r"0\.json was trained with batch_size=16, lr=0\.002, expected batch_size=8, lr=0\.01: pass the same "
    with pytest.raises(SettingsError, match=words + "settings, or another --output"):
        finished(run, tmp_path)


def test_missing_weights_mean_that_a_run_is_not_finished(tmp_path: Path) -> None:
    from experiment import execute, finished

    (run,) = settings("--methods", "plain", "--seeds", "1").runs
    assert finished(run, tmp_path) is None
    execute(run, tmp_path)
    assert finished(run, tmp_path) is not None
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["0.json", "0.pt"]
    run.file(tmp_path).with_suffix(".pt").unlink()
    assert finished(run, tmp_path) is None


def made_up(chosen: Any, accuracy: float) -> dict[Any, Any]:
    """Figures of the runs of a command line, each a little better than the one before, without training them."""
    from experiment import Result

    return {run: Result(accuracy + place / 100, 0.05, 1.2, 3.0, 60.0) for place, run in enumerate(chosen.runs)}


def test_known_figures_are_not_trained_again(tmp_path: Path) -> None:
    """A file of figures is enough for the table: nothing to train but another seed, recipe or method."""
    from compare import remaining, rows
    from figures import add_figures, read_figures

    options = ("--seeds", "2", "--output", tmp_path)
    chosen = settings(*options)
    known = made_up(chosen, 0.5)
    for run, result in known.items():
        add_figures(chosen.figures, run, result)
    assert read_figures(chosen.figures) == known
    assert list(tmp_path.rglob("*.pt")) == []
    assert remaining(chosen) == []
    plain, aligned = rows(chosen)
    assert plain[:8] == ("mixer", "plain", "2", "51.0 ± 1.4", "–", "–", "–", "0.050")
    assert aligned[:8] == ("mixer", "aligned", "2", "52.0 ± 1.4", "+1.0 (+1.0 to +1.0)", "2 of 2", "0.5", "0.050")
    others = {
        ("--seeds", "3"): ["mixer plain, seed 2", "mixer aligned, seed 2"],
        ("--seeds", "1", "--lr", "0.1"): ["mixer plain, seed 0", "mixer aligned, seed 0"],
        ("--seeds", "1", "--methods", "plain", "mixup/plain"): ["mixer mixup/plain, seed 0"],
        ("--seeds", "1", "--weights"): ["mixer plain, seed 0", "mixer aligned, seed 0"],
    }
    for more, names in others.items():
        assert [str(run) for run in remaining(settings(*options, *more))] == names


def test_figures_that_are_known_stay(tmp_path: Path) -> None:
    """A run that is trained for its weights alone leaves its line as it is; one in the folder alone gets a line."""
    from compare import record, remaining
    from experiment import execute, finished
    from figures import add_figures, read_figures

    chosen = settings("--methods", "plain", "--seeds", "1", "--weights", "--output", tmp_path)
    [run], known = chosen.runs, made_up(chosen, 0.5)
    add_figures(chosen.figures, run, known[run])
    assert remaining(chosen) == [run]
    execute(run, tmp_path)
    record(run, chosen)
    assert read_figures(chosen.figures) == known
    assert remaining(chosen) == []
    chosen.figures.unlink()
    assert remaining(replace(chosen, weights=False)) == []
    assert read_figures(chosen.figures) == {run: finished(run, tmp_path)}


def test_a_damaged_line_of_figures(tmp_path: Path) -> None:
    from experiment import SettingsError
    from figures import add_figures, read_figures

    chosen = settings("--seeds", "1", "--output", tmp_path)
    for run, result in made_up(chosen, 0.5).items():
        add_figures(chosen.figures, run, result)
    text = chosen.figures.read_text()
    chosen.figures.write_text(text.replace("0.51", "a half"))
    words = (
        r"line 3 of .*figures\.csv holds no run \(ValueError: could not convert string to float: 'a half'\): restore "
    )
    with pytest.raises(SettingsError, match=words + "the file, or pass another --figures"):
        read_figures(chosen.figures)
    assert read_figures(tmp_path / "none.csv") == {}


def test_results_has_the_figures_that_are_committed() -> None:
    """Each row of finished runs of the first section stands in RESULTS.md, without parameters and speed."""
    from compare import parse, rows

    text = (EXAMPLES / "RESULTS.md").read_text(encoding="utf-8")
    blending = ["--architectures", "vit", "--methods", "plain", "aligned:blend=agreement"]
    computed = [row[:8] for row in (*rows(parse([])), *rows(parse(blending))) if row[2] != "0"]
    assert computed
    assert [row for row in computed if f"| {' | '.join(row)} |" not in text] == []


def test_transmix_needs_attention() -> None:
    from compare import parse

    chosen = parse(["--methods", "plain", "transmix", "--seeds", "1"])
    names = [f"{run.architecture} {run.method}" for run in chosen.runs]
    assert names == ["vit plain", "vit transmix", "swin plain", "swin transmix", "mixer plain", "convnext plain"]


@pytest.mark.slow
def test_a_policy_without_effect_is_not_trained(tmp_path: Path) -> None:
    from compare import remaining, rows
    from experiment import UNCHANGED, execute, finished

    chosen = settings("--methods", "aligned:heads=norm", "aligned:weights=signed", "--seeds", "1", "--output", tmp_path)
    for run in chosen.runs:  # a mixer has no heads, and weights of both signs
        execute(run, tmp_path)
    assert finished(chosen.runs[0], tmp_path) == UNCHANGED
    assert [path.parent.name for path in tmp_path.rglob("*.pt")] == ["aligned+weights=signed"]
    assert remaining(chosen) == []
    heads, signed = rows(chosen)
    assert heads[:8] == ("mixer", "aligned:heads=norm", "–", "labels as aligned", "–", "–", "–", "–")
    assert heads[9] == "–"
    assert signed[1:3] == ("aligned:weights=signed", "1")


@pytest.mark.slow
def test_a_failure_names_its_run(tmp_path: Path) -> None:
    from compare import train

    (run,) = settings("--methods", "plain", "--seeds", "1").runs
    with pytest.raises(RuntimeError, match="resnet plain, seed 0 failed: KeyError: 'resnet'; finished runs are kept"):
        list(train([replace(run, architecture="resnet")], tmp_path, jobs=1))


@pytest.mark.slow
def test_runs_of_a_seed_differ_in_their_target_only() -> None:
    from architectures import build
    from data import load_digits
    from methods import Method
    from mixers import MIXERS
    from training import DigitTrainer, Recipe

    class Recording(DigitTrainer):
        """Keeps what the model is given and gives."""

        def predict(self, images: Tensor, target: tlfx.MixedTarget) -> tuple[Tensor, Tensor]:
            logits, soft = super().predict(images, target)
            seen.append((images, target.area(), logits.detach(), soft))
            return logits, soft

    train, _ = load_digits(32, 20, size=28)
    recipe = Recipe(epochs=1, batch_size=16, train=32, test=20, lr=0.0, mix_prob=1.0, seed=3, device="cpu")
    recorded = []
    for method in ("plain", "aligned"):
        seen: list[tuple[Tensor, ...]] = []
        model = build("swin", 3)  # with drop path, which is drawn too
        trainer = Recording(Method(target=method).prepare(model), recipe, MIXERS["cutmix"](model, recipe))
        assert list(trainer.train(train)) == [1, 2]
        recorded.append(seen)
    for plain, aligned in zip(*recorded, strict=True):
        for ours, theirs in zip(plain[:3], aligned[:3], strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(plain[3], plain[1])
    assert any(not torch.allclose(soft, area, atol=1e-5) for _, area, _, soft in recorded[1])


def test_the_gap_counts_mixed_pairs_of_different_classes() -> None:
    from training import DigitMeter

    mask = torch.zeros(3, 1, 4, 4)
    mask[:2, :, :, :1] = 1  # λ_area is 0.25 in two pairs, one of them of one class, and 0 in the third
    target = tlfx.MixedTarget(first=torch.tensor([0, 1, 2]), second=torch.tensor([3, 1, 4]), mask=mask, num_classes=5)
    soft = target.area()
    soft[0, 0], soft[0, 3] = 0.65, 0.35
    meter = DigitMeter()
    for loss, soft_target in ((2.0, soft), (1.0, target.area())):
        meter.update(torch.tensor(loss), tlfx.lambda_gap(target, soft_target, reduction="none"))
    assert meter.loss == 1.5
    assert meter.gaps == pytest.approx([0.4, 0.0])
    assert meter.lambda_gap == pytest.approx(0.2)


@pytest.fixture(scope="module")
def small_vit() -> Any:
    """The ViT of the examples with one block."""
    from architectures import build

    model: Any = build("vit", 0)
    del model.blocks[1:]
    return model


@pytest.mark.parametrize(
    "mixer",
    [
        "cutmix",
        "mixup",
        pytest.param("switch", marks=pytest.mark.slow),
        pytest.param("patches", marks=pytest.mark.slow),
        pytest.param("blocks", marks=pytest.mark.slow),
        pytest.param("grid", marks=pytest.mark.slow),
        pytest.param("resizemix", marks=pytest.mark.slow),
        pytest.param("saliencymix", marks=pytest.mark.slow),
        pytest.param("attentive", marks=pytest.mark.slow),
        pytest.param("puzzlemix", marks=pytest.mark.slow),
    ],
)
def test_every_mixer_trains_every_target(mixer: str, small_vit: Any) -> None:
    """Pictures change, the area target is what the mixer made, and the aligned one sums to 1."""
    from data import load_digits
    from methods import Method
    from mixers import MIXERS
    from training import DigitTrainer, Recipe

    train, _ = load_digits(64, 16, size=28)
    recipe = Recipe(epochs=1, batch_size=16, train=64, test=16, lr=1e-3, mix_prob=1.0, seed=1, device="cpu")
    for target in ("plain", "aligned") if mixer != "cutmix" else ("plain", "transmix", "aligned"):
        model = deepcopy(small_vit)
        trainer = DigitTrainer(Method(mixer, target).prepare(model), recipe, MIXERS[mixer](model, recipe))
        assert list(trainer.train(train)) == [1, 2, 3, 4]
        assert math.isfinite(trainer.meter.loss)
        assert len(trainer.meter.gaps) > 4
        assert (trainer.meter.lambda_gap > 1e-4) == (target != "plain" and mixer != "mixup")


@pytest.mark.parametrize("architecture", ["vit", "swin", "mixer", "convnext"])
def test_architectures(architecture: str) -> None:
    from architectures import ARCHITECTURES, build

    assert list(ARCHITECTURES) == ["vit", "swin", "mixer", "convnext"]
    first, again, other = (build(architecture, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in build(architecture, 0).modules())
    assert build(architecture, 0)(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


VALUES = st.dictionaries(st.integers(0, 30), st.floats(0, 1), min_size=1, max_size=12)


@given(VALUES, VALUES)
def test_paired_difference(method: dict[int, float], baseline: dict[int, float]) -> None:
    from paired import paired_difference

    common = sorted(set(method) & set(baseline))
    if not common:
        with pytest.raises(ValueError, match="no seed in common"):
            paired_difference(method, baseline)
        return
    difference = paired_difference(method, baseline)
    differences = np.array([method[seed] - baseline[seed] for seed in common])
    assert difference.mean == pytest.approx(differences.mean(), abs=1e-12)
    if len(common) == 1:
        assert (difference.low, difference.high) == (-np.inf, np.inf)
        return
    error = differences.std(ddof=1) / np.sqrt(len(common))
    quantile = stats.t.isf(0.025, len(common) - 1)
    np.testing.assert_allclose(
        (difference.low, difference.high),
        (differences.mean() - quantile * error, differences.mean() + quantile * error),
        atol=1e-9,
    )


def test_sign_test() -> None:
    """Fisher's use of Darwin's maize: 13 of 15 pairs (p = 0.0074); a tie does not count."""
    from paired import SignTest, sign_test

    darwin = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    zero = dict.fromkeys(range(16), 0.0)
    p_value = sign_test(dict(enumerate([*darwin, 0])), zero)
    assert (p_value.won, p_value.lost) == (13, 2)
    assert p_value.p == pytest.approx(2 * 121 / 2**15)
    assert sign_test({0: 1.0}, {0: 1.0}) == sign_test({0: 1.0}, {1: 1.0}) == SignTest(0, 0, 1.0)


def test_interval_of_published_figures() -> None:
    """Student's own: ten patients, additional hours of sleep by two drugs (Biometrika 6, 1908); as R's t.test gives."""
    from paired import paired_difference

    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    difference = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
    assert (difference.mean, difference.low, difference.high) == pytest.approx(
        (-1.58, -2.4598858, -0.7001142), abs=1e-7
    )


@pytest.mark.parametrize("name", ["methods", "paired"])
def test_examples_in_docstrings(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain", "plain"),
        ("aligned", "aligned"),
        ("aligned:residual=average", "aligned"),
        ("aligned:heads=norm,residual=skip", "aligned:residual=skip,heads=norm"),
        ("cutmix/transmix", "transmix"),
        ("mixup/aligned:heads=norm", "mixup/aligned:heads=norm"),
    ],
)
def test_methods(text: str, name: str) -> None:
    from methods import Method

    method = Method.parse(text)
    assert str(method) == name
    assert Method.parse(name) == method


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "align"], "'align' is not a method: expected [MIXER/]TARGET or [MIXER/]aligned:FIELD=VALUE["),
        (["--methods", "cutout/plain"], "with a mixer of none, cutmix, mixup, switch, patches, blocks, grid,"),
        (["--methods", "mixup/"], "and a target of plain, transmix, aligned"),
        (["--methods", "plain:heads=norm"], "'plain:heads=norm' is not a method"),
        (["--methods", "aligned:"], "'aligned:' is not a method"),
        (
            ["--methods", "aligned:head=norm"],
            "'head=norm' is not a field of tlfx.Policy; expected one of residual, heads,",
        ),
        (["--methods", "aligned:heads=max"], "heads='max' is unknown, expected one of 'mean', 'norm'"),
        (["--methods", "aligned:heads=mean,heads=norm"], "'aligned:heads=mean,heads=norm' sets heads twice"),
        (["--architectures", "resnet"], "invalid choice: 'resnet'"),
        (["--seeds", "0"], "--seeds 0 --jobs 1: expected at least 1 of each"),
        (["--batch-size", "7"], "expected an even number"),
        (["--mix-prob", "1.5"], "--mix-prob 1.5: expected a share between 0 and 1"),
        (["--clip", "-1"], "--clip -1.0: expected a positive norm, or 0 for no limit"),
    ],
)
def test_what_cannot_be_run(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        settings(*arguments)
    assert words in " ".join(capsys.readouterr().err.split())
