"""The examples for timm, torchvision, Lightning, accelerate and Hugging Face: what they descend and print."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from descent import by_hand, clipped, distance, named, recorded
from helpers import slow_except

import tlfx

HERE = Path(__file__).parent
LARGEST_NORM = {"timm_task": 5.0, "huggingface_trainer": 1.0}  # of those that clip gradients
NAMES = (
    "timm_train",
    "timm_task",
    "torchvision_reference",
    "lightning_module",
    "accelerate_loop",
    "huggingface_trainer",
)
EVERY_RUN = ("lightning_module", "accelerate_loop")
"""The others are tested by ``make slow``; tests/integrations/ has timm's tasks and Hugging Face's trainer."""


def tiny(**changes: object) -> Namespace:
    settings = {"epochs": 2, "train": 64, "test": 32, "batch_size": 32, "lr": 2e-3, "devices": 1}
    return Namespace(**{**settings, **changes})


def losses(shown: str) -> list[float]:
    """The training loss of each epoch, as an example prints it."""
    return [float(number) for number in re.findall(r"(?<!eval_)loss'?:? '?(\d+\.\d+)", shown)]


@pytest.mark.parametrize("name", slow_except(EVERY_RUN, NAMES))
def test_every_step_descends_the_loss_of_the_aligned_target(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(name)
    with recorded() as run:
        model = module.train(tiny())
    assert isinstance(model, tlfx.Aligned)
    assert len(run.steps) == len(run.batches) == 4
    norm, from_plain = LARGEST_NORM.get(name, float("inf")), []
    for step, batch in zip([named(step, model) for step in run.steps], run.batches, strict=True):
        weights, gradients = step
        aligned, plain = by_hand(model, weights, *batch)
        assert distance(gradients, clipped(aligned, norm)) < 1e-5
        from_plain.append(distance(gradients, clipped(plain, norm)))
    assert max(from_plain) > 1e-4  # a test that cannot tell the targets apart would pass with either
    first, *_, last = losses(capsys.readouterr().out)
    assert last < first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command", "arguments"),
    [
        ("lightning_module", [sys.executable], ["--devices", "2", "--batch-size", "32"]),
        (
            "accelerate_loop",
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
            ["--batch-size", "16"],
        ),
    ],
)
def test_two_processes_descend_the_mean_of_both_losses(
    name: str, command: list[str], arguments: list[str], tmp_path: Path
) -> None:
    shared = ["--epochs", "1", "--train", "64", "--test", "32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    environment |= {"ACCELERATE_USE_CPU": "true"}  # without it, accelerate leaves processes on the CPU to themselves
    script = [str(HERE / "first_steps.py"), name, str(tmp_path)]
    done = subprocess.run(
        [*command, *script, *shared, *arguments], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert losses(done.stdout), done.stdout
    model = tlfx.align(importlib.import_module(name).build_model())
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 2
    for (weights, gradients, batch), (same_weights, same_gradients, other_batch) in zip(*ranks, strict=True):
        assert len(batch[0]) == len(other_batch[0]) == 16
        assert not torch.equal(batch[0], other_batch[0])
        for key in weights:
            assert torch.equal(weights[key], same_weights[key])
            assert torch.equal(gradients[key], same_gradients[key])
        halves = [by_hand(model, weights, *half)[0] for half in (batch, other_batch)]
        assert distance(gradients, {key: (halves[0][key] + halves[1][key]) / 2 for key in halves[0]}) < 1e-5
