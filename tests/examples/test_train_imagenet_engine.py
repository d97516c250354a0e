"""The update of `examples/train_imagenet.py` against a plain PyTorch loop, its state, and its data sets."""

from __future__ import annotations

import copy
import doctest
import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from imagefolder import SMALL, write_folders, write_pictures
from scipy.io import savemat  # type: ignore[import-untyped]
from torch import Tensor

import tlfx
from tlfx.mix import Mixup

RESNET = ["--model", "resnet18", "--model-kwargs", "layers=(1,1,1,1)", "channels=(8,8,8,8)"]


def options_of(*arguments: str) -> Namespace:
    from imagenet.options import parse

    return parse("", [*SMALL, "--data-dir", "data", "--output", "run", "--num-classes", "4", *arguments])


def trainer_of(options: Namespace) -> Any:
    """A trainer whose epochs have four updates."""
    from imagenet.distributed import Processes
    from imagenet.model import build_model
    from train_imagenet import choose_learning_rate, make_trainer

    choose_learning_rate(options, options.batch_size * options.grad_accum_steps)
    model, config = build_model(options, options.num_classes)
    return make_trainer(model, config["input_size"], options, Processes(0, 1, torch.device("cpu")), 4)[0]


def batches(options: Namespace, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, 3, 32, 32, generator=generator), torch.randint(4, (4,), generator=generator))
        for _ in range(options.grad_accum_steps)
    ]


def update(trainer: Any, done: int) -> None:
    steps = trainer.options.grad_accum_steps
    trainer.update(batches(trainer.options, done), range(steps), epoch=0, done=done)


SGD = [
    "--opt",
    "momentum",
    "--momentum",
    "0",
    "--weight-decay",
    "0",
    "--lr",
    "0.5",
    "--warmup-epochs",
    "0",
    "--sched",
    "none",
]
SGD += ["--grad-accum-steps", "3", "--batch-size", "4", "--drop-path", "0.2"]


@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "aligned"])
def test_an_update_is_that_of_a_plain_loop(mixed: bool) -> None:
    from imagenet.order import Draws, seed_for, seed_generators

    options = options_of(
        *SGD, "--clip-grad", "0.1", *(["--cutmix", "1", "--mixup", "0.8"] if mixed else ["--no-align"])
    )
    trainer = trainer_of(options)
    model = copy.deepcopy(trainer.bare).train()
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4)
    for number, (images, labels) in enumerate(batches(options, 7)):
        seed_generators(seed_for(42, Draws.BATCH, 7, number))
        if mixed:
            assert isinstance(model, tlfx.Aligned)
            logits, soft = model(*mixup(images, labels))
            loss = -(soft * logits.log_softmax(1)).sum(1).mean()
        else:
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        (loss / 3).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    update(trainer, 7)
    for (name, ours), theirs in zip(trainer.bare.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, (theirs - 0.5 * theirs.grad).detach(), atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--amp", "--amp-dtype", "float16", "--no-align", "--model-ema", "--clip-grad", "1", "--clip-mode", "agc"],
        pytest.param(
            ["--amp", "--amp-dtype", "bfloat16", "--channels-last", "--grad-checkpointing", "--sched-on-updates"],
            marks=pytest.mark.slow,
        ),
        ["--opt", "lamb", "--no-align", "--mixup-mode", "elem", "--model-ema", "--model-ema-warmup", "--drop", "0.1"],
        [*RESNET, "--no-align", "--opt", "sgd", "--sched", "poly", "--mixup-mode", "pair", "--model-ema"],
    ],
    ids=["float16", "bfloat16", "lamb", "batch norm"],
)
def test_a_trainer_goes_on_from_its_state(arguments: list[str]) -> None:
    def make() -> Any:
        return trainer_of(
            options_of("--batch-size", "4", "--cutmix", "1", "--mixup", "0.8", "--drop-path", "0.1", *arguments)
        )

    whole, resumed = make(), make()
    for done in (1, 2):
        update(whole, done)
    kept = copy.deepcopy(whole.state())
    for done in (3, 4):
        update(whole, done)
    torch.manual_seed(99)  # whatever the generators are at
    resumed.load(kept)
    for done in (3, 4):
        update(resumed, done)
    assert_same(resumed.state(), whole.state())
    assert whole.meter.sums[2] == 4.0


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_mixed_precision_scales_the_loss() -> None:
    trainer = trainer_of(options_of("--batch-size", "4", "--amp"))
    assert trainer.scaler.is_enabled()
    update(trainer, 1)
    assert trainer.state()["scaler"]["scale"] > 1.0
    assert not trainer_of(options_of("--amp", "--amp-dtype", "bfloat16")).scaler.is_enabled()


@pytest.mark.slow
def test_a_compiled_model_trains_the_same() -> None:
    common = ["--batch-size", "4", "--cutmix", "1"]
    plain, compiled = trainer_of(options_of(*common)), trainer_of(options_of(*common, "--torchcompile", "eager"))
    for trainer in (plain, compiled):
        update(trainer, 1)
    for ours, theirs in zip(compiled.bare.parameters(), plain.bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_each_image_is_validated_once(processes: int, tmp_path: Path) -> None:
    from imagenet.data import open_splits, val_loader
    from imagenet.distributed import Processes

    write_folders(tmp_path, train=1, val=2)
    write_pictures(tmp_path / "val" / "ant", 5, 0)
    options = options_of("--data-dir", str(tmp_path), "--validation-batch-size", "2")
    splits = open_splits(options)
    assert len(splits.val) == 11
    seen, lengths = [], set()
    for rank in range(processes):
        part: Any = val_loader(splits, Processes(rank, processes, torch.device("cpu")), options).dataset
        indices = part.indices
        lengths.add(len(indices))
        seen += [index for n, index in enumerate(indices) if n * processes + rank < 11]
    assert sorted(seen) == list(range(11))
    assert len(lengths) == 1


def test_accuracy_is_that_of_a_plain_count(tmp_path: Path) -> None:
    from imagenet.data import make_transforms, open_splits, val_loader
    from imagenet.distributed import Processes
    from imagenet.evaluation import evaluate
    from imagenet.model import build_model

    data = write_folders(tmp_path, train=1, val=3)
    options = options_of("--data-dir", str(data), "--validation-batch-size", "5", "--num-classes", "9")
    model, config = build_model(options, 9)
    splits = open_splits(options).transformed(*make_transforms(options, config))
    alone = Processes(0, 1, torch.device("cpu"))
    figures = evaluate(model, val_loader(splits, alone, options), 12, alone, torch.no_grad)
    images, labels = zip(*(splits.val[number] for number in range(12)), strict=True)
    with torch.no_grad():
        logits = model.eval()(torch.stack(images))
    order = logits.argsort(1, descending=True)
    right = [100 * np.mean([label in row[:k] for row, label in zip(order, labels, strict=True)]) for k in (1, 5)]
    assert [figures["top1"], figures["top5"]] == pytest.approx(right)
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor(labels)).item(), rel=1e-5)
    assert 0 < right[1] < 100


def test_cars(tmp_path: Path) -> None:
    from imagenet.data import open_splits

    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["first", "second"], dtype=object)})
    for split, file, count in (("train", "devkit/cars_train_annos", 3), ("test", "cars_test_annos_withlabels", 2)):
        write_pictures(folder / f"cars_{split}", count, 0)
        kinds = np.array([(f"{n}.png", n % 2 + 1) for n in range(count)], dtype=[("fname", object), ("class", object)])
        savemat(folder / f"{file}.mat", {"annotations": kinds})
    splits = open_splits(options_of("--data-dir", str(tmp_path), "--dataset", "torch/stanford_cars"))
    splits = splits.transformed(lambda image: ("train", image.size), lambda image: ("val", image.size))
    assert [splits.train[n] for n in range(3)] == [
        (("train", (40, 40)), 0),
        (("train", (40, 40)), 1),
        (("train", (40, 40)), 0),
    ]
    assert len(splits.val) == 2
    assert splits.val[1] == (("val", (40, 40)), 1)
    assert splits.num_classes == 196


def test_posterising_to_no_bits_is_black() -> None:
    from imagenet.data import make_transforms
    from PIL import Image

    options = options_of("--aa", "rand-m10-n2-inc1")
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "center"}
    augment = make_transforms(options, {**config, "interpolation": "bilinear"})[0].transforms[2]
    (posterise,) = (op for op in augment.ops if op.name == "PosterizeIncreasing")
    posterise.prob = 1.0
    assert not np.asarray(posterise(Image.new("RGB", (4, 4), "white"))).any()


def test_examples_in_docstrings() -> None:
    for name in ("order", "distributed"):
        examples = doctest.testmod(importlib.import_module(f"imagenet.{name}"))
        assert examples.failed == 0
    assert examples.attempted > 0
