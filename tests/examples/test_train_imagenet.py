"""`examples/train_imagenet.py` as a user runs it: whole, killed and resumed, and in two processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EXAMPLES
from imagefolder import SMALL, write_folders, write_pictures

SCRIPT = EXAMPLES / "train_imagenet.py"
TIMEOUT = 300
MIXED = ["--mixup", "0.8", "--cutmix", "1", "--drop-path", "0.1", "--clip-grad", "5", "--warmup-epochs", "1"]
AUGMENTED = ["--aa", "rand-m9-mstd0.5-inc1", "--reprob", "0.25", "--model-ema", "--model-ema-decay", "0.9"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folders(tmp_path_factory.mktemp("data"), train=24, val=5)
    write_pictures(folder / "val" / "bee", 6, colour=1)  # an odd number for two processes
    return folder


def train(*arguments: object) -> None:
    """Run the script in this process."""
    from train_imagenet import main

    main([*SMALL, *map(str, arguments)])


def run(*arguments: object, script: Path = SCRIPT, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the script in new processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), *SMALL, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)


def run_whole(*arguments: object, processes: int) -> None:
    done = run(*arguments, processes=processes)
    assert done.returncode == 0, done.stdout + done.stderr


KILLER = """
import os, signal, sys
sys.path.insert(0, {examples!r})
import train_imagenet
update = train_imagenet.RunTrainer.update

def killed(self, batches, numbers, epoch, done):
    if done == {update} and self.processes.primary:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, batches, numbers, epoch, done)

train_imagenet.RunTrainer.update = killed
train_imagenet.main()
"""


def run_killed(update: int, folder: Path, *arguments: object, processes: int = 1) -> None:
    """Run the script, whose first process is killed where an update begins."""
    script = folder.with_suffix(".py")
    script.write_text(KILLER.format(examples=str(EXAMPLES), update=update))
    done = run(*arguments, "--output", folder, script=script, processes=processes)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr if processes > 1 else done.returncode == -signal.SIGKILL, done.stderr


def rows(file: Path, without: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file that was, or is being, written."""
    if not file.exists():
        return []
    with file.open(newline="") as text:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(text)]


def last(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "last.pth.tar", weights_only=True)
    return content


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Everything in two checkpoints is equal, tensors bit for bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, (list, tuple)):  # betas of a sharded optimiser come back as a list
        assert len(ours) == len(theirs), path
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, path)
    else:
        assert ours == theirs, path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of 24 updates that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(*LONG, "--data-dir", data, "--output", folder)
    return folder


LONG = ["--batch-size", "4", "--epochs", "2", *MIXED, *AUGMENTED, "--checkpoint-steps", "5", "--log-interval", "1"]


def test_a_run_is_logged_and_kept(whole: Path) -> None:
    summary = rows(whole / "summary.csv")
    assert [row["epoch"] for row in summary] == ["0", "1"]
    assert [row["updates"] for row in summary] == ["24", "48"]
    for row in summary:
        assert 0.0 < float(row["train_loss"]) < 3.0
        assert 0.0 < float(row["lambda_gap"]) < 1.0
        for prefix in ("", "ema_"):
            assert 0.0 <= float(row[f"{prefix}top1"]) <= float(row[f"{prefix}top5"]) == 100.0  # four classes
    assert [int(row["updates"]) for row in rows(whole / "train.csv")] == list(range(1, 49))
    assert {"args.yaml", "last.pth.tar", "model_best.pth.tar"} <= {file.name for file in whole.iterdir()}
    assert not list(whole.glob("*.new"))
    best = torch.load(whole / "model_best.pth.tar", weights_only=True)["progress"]["best"]
    assert best["top1"] == max(float(row[name]) for row in summary for name in ("top1", "ema_top1"))


def test_timm_reads_its_checkpoints(whole: Path) -> None:
    import timm

    kwargs: dict[str, Any] = {
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "img_size": 32,
        "num_classes": 4,
    }
    model = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(whole / "last.pth.tar"), **kwargs)
    assert_same(dict(model.state_dict()), dict(last(whole)["state_dict_ema"]))


@pytest.mark.slow
def test_killed_midway_and_resumed_it_ends_in_the_same_weights(whole: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_killed(33, folder, *LONG, "--data-dir", data, "--workers", "2")
    assert last(folder)["progress"] | {"best": None} == {"epoch": 1, "update": 6, "best": None}
    assert len(rows(folder / "train.csv")) == 32  # two of them are made again
    train("--config", folder / "args.yaml", "--resume", "--workers", "0")
    assert_same(last(folder), last(whole))
    for name in ("train.csv", "summary.csv"):
        assert rows(folder / name, ("images_per_second",)) == rows(whole / name, ("images_per_second",))


@pytest.mark.slow
def test_without_alignment_targets_are_by_area(data: Path, tmp_path: Path) -> None:
    short: list[object] = [
        "--batch-size",
        "24",
        "--epochs",
        "1",
        "--cutmix",
        "1",
        "--log-interval",
        "1",
        "--data-dir",
        data,
    ]
    train(*short, "--output", tmp_path / "aligned")
    train(*short, "--no-align", "--output", tmp_path / "plain")
    train(*short, "--align-layers", "-1", "--output", tmp_path / "one")
    gaps = [float(rows(tmp_path / name / "summary.csv")[0]["lambda_gap"]) for name in ("plain", "one", "aligned")]
    assert gaps[0] == 0.0 < min(gaps[1:])
    assert gaps[1] != gaps[2]
    first = [{k: float(v) for k, v in rows(tmp_path / n / "train.csv")[0].items()} for n in ("plain", "aligned")]
    assert first[0]["train_loss"] == pytest.approx(first[1]["train_loss"], rel=0.2)
    assert first[0]["train_loss"] != first[1]["train_loss"]


TWO = ["--batch-size", "24", "--epochs", "2", *MIXED, *AUGMENTED, "--log-interval", "1"]


@pytest.fixture(scope="module")
def single(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that takes two steps an update."""
    folder = tmp_path_factory.mktemp("single") / "run"
    train(*TWO, "--grad-accum-steps", "2", "--data-dir", data, "--output", folder)
    return folder


def assert_close_runs(folder: Path, single: Path) -> None:
    """Losses, accuracies and weights of two processes are those of one, up to rounding."""
    for name in ("train.csv", "summary.csv"):
        for ours, theirs in zip(rows(folder / name), rows(single / name), strict=True):
            for column in set(ours) - {"images_per_second"}:
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-5), column
    ours, theirs = last(folder), last(single)
    for name in ("state_dict", "state_dict_ema"):
        for key, tensor in theirs[name].items():  # type: ignore[attr-defined]
            torch.testing.assert_close(ours[name][key], tensor, atol=2e-6, rtol=1e-5)
    assert ours["settings"]["processes"] == 2  # type: ignore[comparison-overlap]


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, single: Path, tmp_path: Path) -> None:
    run_whole(*TWO, "--data-dir", data, "--output", tmp_path / "run", processes=2)
    assert_close_runs(tmp_path / "run", single)
    gradients = [content["optimizer"]["state"] for content in (last(tmp_path / "run"), last(single))]
    for key, state in gradients[1].items():  # Adam's mean of gradients
        torch.testing.assert_close(gradients[0][key]["exp_avg"], state["exp_avg"], atol=1e-7, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["--no-align", "--align"])
def test_sharded_processes_train_as_one(targets: str, data: Path, tmp_path: Path) -> None:
    common = [*TWO, targets, "--data-dir", data]
    train(*common, "--grad-accum-steps", "2", "--output", tmp_path / "single")
    run_whole(*common, "--fsdp", "--output", tmp_path / "run", processes=2)
    assert_close_runs(tmp_path / "run", tmp_path / "single")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [[], ["--fsdp"]], ids=["DDP", "FSDP"])
def test_killed_processes_resume_to_the_same_weights(sharded: list[str], data: Path, tmp_path: Path) -> None:
    common = [*LONG, *sharded, "--no-align", "--data-dir", data]
    run_whole(*common, "--output", tmp_path / "whole", processes=2)
    run_killed(18, tmp_path / "run", *common, processes=2)
    assert last(tmp_path / "run")["progress"] | {"best": None} == {"epoch": 1, "update": 3, "best": None}
    run_whole("--config", tmp_path / "run" / "args.yaml", "--resume", processes=2)
    assert_same(last(tmp_path / "run"), last(tmp_path / "whole"))
