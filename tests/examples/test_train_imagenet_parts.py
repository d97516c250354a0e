"""The parts of `examples/train_imagenet.py`: order and draws, folders, checkpoints, options and recipes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from helpers import EXAMPLES
from hypothesis import given
from hypothesis import strategies as st
from imagefolder import write_folders
from torch import nn
from torch.utils.data import DataLoader

from tlfx.errors import InputError
from tlfx.system.files import write_atomically

RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))


@given(
    images=st.integers(1, 60),
    size=st.integers(1, 4),
    processes=st.integers(1, 3),
    steps=st.integers(1, 3),
    repeats=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_processes_share_the_batches_of_one(
    images: int, size: int, processes: int, steps: int, repeats: int, epoch: int
) -> None:
    from imagenet.order import Batches

    def batches(rank: int, count: int) -> list[list[Any]]:
        made = Batches(images, size, processes * steps, seed=1, rank=rank, processes=count, repeats=repeats)
        made.epoch = epoch
        parts = list(made)
        assert len(parts) == len(made)
        return parts

    alone = batches(0, 1)
    shared = [batches(rank, processes) for rank in range(processes)]
    assert [batch for turn in zip(*shared, strict=True) for batch in turn] == alone
    flat = [sample for batch in alone for sample in batch]
    assert len(flat) == images // (size * processes * steps) * size * processes * steps
    assert sorted(sample.position for sample in flat) == list(range(len(flat)))
    counts = np.bincount([sample.image for sample in flat], minlength=images)
    assert counts.max(initial=0) <= repeats
    assert len(counts) == images


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    from imagenet.order import Batches

    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        batches = Batches(64, 8, 1, seed=seed)
        batches.epoch = epoch
        orders.append(tuple(sample.image for batch in batches for sample in batch))
    assert len(set(orders)) == 3
    assert orders[0] == orders[3]


def test_an_epoch_goes_on_where_it_stopped() -> None:
    from imagenet.order import Batches

    whole, rest = (Batches(50, 4, 2, seed=3, rank=1, processes=2) for _ in range(2))
    rest.done = 4
    assert list(rest) == list(whole)[4:]
    assert len(rest) == 2


class Drawn:
    """A data set of what its transforms would draw."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def test_what_is_drawn_depends_on_the_place_alone() -> None:
    from imagenet.order import Batches, Reproducible

    def draws(workers: int, done: int = 0, seed: int = 5) -> list[Any]:
        batches = Batches(24, 4, 1, seed=1)
        batches.done = done
        loader = DataLoader(Reproducible(Drawn(), seed), batch_sampler=batches, num_workers=workers)
        return [tuple(column.tolist()) for batch in loader for column in [torch.stack([x.double() for x in batch])]]

    alone = draws(0)
    assert draws(2) == alone
    assert draws(0, done=3) == alone[3:]
    assert draws(0, seed=6) != alone
    values = np.array(alone)[:, 1:].ravel()
    assert len(set(values)) == values.size  # nothing is drawn twice


def test_seeds_reach_every_generator() -> None:
    from imagenet.order import Draws, seed_for, seed_generators

    def draw(*place: int) -> tuple[float, ...]:
        seed_generators(seed_for(0, Draws.BATCH, *place))
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    first, again, other = draw(3, 1), draw(3, 1), draw(1, 3)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert seed_for(0, Draws.BATCH, 1, 2) != seed_for(0, Draws.SAMPLE, 1, 2)


def test_folders(tmp_path: Path) -> None:
    from imagenet.folders import check_same_classes, open_split

    write_folders(tmp_path, train=3, val=2)
    (tmp_path / "val").rename(tmp_path / "validation")
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    check_same_classes(train, val)
    assert (len(train), len(val)) == (12, 8)
    assert train.classes == val.classes == ["ant", "bee", "cat", "dog"]


def _write_for_ever(folder: str) -> None:
    """Checkpoints whose every number is the number of the checkpoint."""
    from imagenet.checkpoint import write

    for number in range(10**6):
        write({"number": number, "weights": torch.full((300_000,), float(number))}, Path(folder), best=number % 2 == 0)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011, 0.017, 0.029])
def test_a_kill_while_writing_leaves_a_whole_checkpoint(tmp_path: Path, delay: float) -> None:
    from imagenet.checkpoint import BEST, LAST

    process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / BEST).exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for name in (LAST, BEST):
        content = torch.load(tmp_path / name, weights_only=True)
        assert torch.equal(content["weights"], torch.full((300_000,), float(content["number"])))


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    from imagenet.checkpoint import LAST, write

    write({"number": 1}, tmp_path, best=False)

    def full(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / LAST, full)
    assert torch.load(tmp_path / LAST) == {"number": 1}
    assert [file.name for file in tmp_path.iterdir()] == [LAST]
    with pytest.raises(InputError, match=f"cannot write a checkpoint to {tmp_path}/gone: .*No such file or directory"):
        write({"number": 2}, tmp_path / "gone", best=False)


def test_a_folder_is_free_until_its_first_checkpoint(tmp_path: Path) -> None:
    """A run that is killed earlier leaves a table of its training, and is started again by the same command."""
    from imagenet.checkpoint import LAST, find

    (tmp_path / "train.csv").write_text("updates,loss\n50,2.0\n")
    assert find(None, tmp_path) is None
    (tmp_path / LAST).touch()
    with pytest.raises(InputError, match=rf"holds another run \({LAST}\), which would be lost"):
        find(None, tmp_path)


def test_tables_are_cut_where_a_run_goes_on(tmp_path: Path) -> None:
    from imagenet.logs import Table

    file = tmp_path / "train.csv"
    table = Table(file, "updates", 0)
    for updates in (5, 10, 15):
        table.add({"updates": updates, "loss": 0.5})
    with file.open("a") as text:
        text.write("2")  # a kill within a row of update 20
    Table(file, "updates", 10).add({"updates": 15, "loss": 0.25})
    assert file.read_text() == "updates,loss\n5,0.5\n10,0.5\n15,0.25\n"
    Table(file, "updates", 0).add({"updates": 5, "loss": 0.5})
    assert file.read_text() == "updates,loss\n5,0.5\n"


def test_settings_are_the_same_from_a_file(tmp_path: Path) -> None:
    from imagenet.config import settings_of, write_config
    from imagenet.options import parse

    flags = [
        "--data-dir",
        "data",
        "--output",
        "run",
        "--model-kwargs",
        "layers=(1,2)",
        "--align-layers",
        "-1",
        "--lr",
        "1",
    ]
    options = parse("", [*flags, "--amp", "--no-align", "--align"])
    write_config(options, tmp_path / "args.yaml")
    again = parse("", ["--config", str(tmp_path / "args.yaml")])
    assert settings_of(again, 2, 3) == settings_of(options, 2, 3)
    assert again.model_kwargs == {"layers": [1, 2]}
    assert again.align_layers == ["-1"]


def test_the_best_checkpoint_stays_when_the_last_is_replaced(tmp_path: Path) -> None:
    from imagenet.checkpoint import BEST, LAST, write

    for number, best in ((1, True), (2, False), (3, True), (4, False)):
        write({"number": number}, tmp_path, best)
        assert torch.load(tmp_path / LAST) == {"number": number}
        assert torch.load(tmp_path / BEST) == {"number": number - (not best)}


def test_blocks_of_models() -> None:
    import timm
    from imagenet.distributed import blocks_of

    for name, kind, count in (
        ("vit_tiny_patch16_224", "Block", 12),
        ("swin_tiny_patch4_window7_224", "SwinTransformerBlock", 12),
        ("pvt_v2_b0", "Block", 8),
        ("resnet18", "BasicBlock", 8),
    ):
        with torch.device("meta"):
            blocks = blocks_of(timm.create_model(name))
        assert [type(block).__name__ for block in blocks] == [kind] * count
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


def recipe(name: str, *flags: str) -> Any:
    """The options of a recipe, as the training script reads them."""
    from imagenet.options import parse

    config = str(EXAMPLES / "recipes" / f"{name}.yaml")
    return parse("", ["--config", config, "--data-dir", "data", "--output", "run", *flags])


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_are_options(file: Path) -> None:
    options = recipe(file.stem)
    for key, value in yaml.safe_load(file.read_text()).items():
        if key != "base":
            taken = getattr(options, key.replace("-", "_"))
            assert taken == (float(value) if isinstance(taken, float) else value), key
    assert "not at hand" not in file.read_text().lower()


PRINTED = {  # Table 9: epochs with cool-down, warm-up, weight decay, moving average, MixUp, CutMix, random erasing
    "table9_deit_small_1": (300, 5, 0.05, None, 0.0, 0.0, True, False),
    "table9_deit_small_2": (300, 5, 0.05, None, 0.8, 1.0, True, False),
    "table9_deit_small_3": (310, 20, 0.03, 0.99996, 0.8, 1.0, False, False),
    "table9_deit_small_3_transmix": (310, 20, 0.03, 0.99996, 0.8, 1.0, False, ["-1"]),
    "table9_deit_small_4": (300, 5, 0.05, None, 0.0, 1.0, True, False),
    "table9_deit_small_4_transmix": (300, 5, 0.05, None, 0.0, 1.0, True, ["-1"]),
    "deit_small": (300, 5, 0.05, None, 0.0, 1.0, True, None),
}


@pytest.mark.parametrize("name", PRINTED)
def test_recipes_are_those_of_table_9(name: str) -> None:
    options = recipe(name)
    assert (
        options.epochs + options.cooldown_epochs,
        options.warmup_epochs,
        options.weight_decay,
        options.model_ema_decay if options.model_ema else None,
        options.mixup,
        options.cutmix,
        options.reprob > 0,
        options.align_layers if options.align else False,
    ) == PRINTED[name]
    assert options.mixup_switch_prob == (0.8 if "_3" in name else 0.5)


def test_recipes_of_tables_7_and_8() -> None:
    assert recipe("table8_layer_12").align_layers == ["blocks.11"]
    assert recipe("table8_layers_2_4_6_8").align_layers == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]
    assert (recipe("table8_skip").residual, recipe("table8_skip").target_scale) == ("skip", 1.0)
    assert (recipe("table8_unnormalised").residual, recipe("table8_unnormalised").target_scale) == ("average", 2.0**24)
    for name, mixer in (("table7_random", "patches"), ("table7_blockwise", "blocks")):
        for flag in ("--align", "--no-align"):
            options = recipe(name, flag)
            assert (options.patch_mixer, options.mix_patch_size, options.mixup, options.cutmix) == (mixer, 16, 0.0, 0.0)
            assert options.align == (flag == "--align")


def test_recipes_scale_the_learning_rate() -> None:
    from train_imagenet import choose_learning_rate

    rates = dict.fromkeys(("deit_tiny", "deit_small", "swin_tiny", "swin_small", "pvt_tiny", "pvt_small"), 0.001)
    rates |= {"table9_deit_small_3": 1e-3, "deit_base_finetune": 1e-5, "swin_base_finetune": 1e-5, "transfer": 0.01}
    for name, rate in rates.items():
        options = recipe(name)
        choose_learning_rate(options, 8 * options.batch_size)
        assert options.lr == pytest.approx(rate)


@pytest.mark.parametrize("name", ["deit_base_finetune", "swin_base_finetune"])
def test_fine_tuning_has_a_constant_rate(name: str) -> None:
    """Table 1: 40 epochs, a constant learning rate of 1e-5, weight decay 1e-8."""
    from timm.optim import create_optimizer_v2, optimizer_kwargs
    from timm.scheduler import create_scheduler_v2, scheduler_kwargs

    options = recipe(name)
    optimizer = create_optimizer_v2(nn.Linear(2, 2), **optimizer_kwargs(cfg=options))
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(options), updates_per_epoch=10)
    assert (scheduler, epochs) == (None, 40)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-5}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-8, 0.0}


def test_a_file_inherits_from_its_base(tmp_path: Path) -> None:
    from imagenet.options import parse

    for name, text in (("a", "epochs: 7\nlr: 1e-3"), ("b", "base: a.yaml\nepochs: 8"), ("c", "base: c.yaml")):
        (tmp_path / f"{name}.yaml").write_text(text)
    given = ["--data-dir", "data", "--output", "run"]
    options = parse("", ["--config", str(tmp_path / "b.yaml"), *given])
    assert (options.epochs, options.lr) == (8, 1e-3)


def test_flags_win_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    from imagenet.options import parse

    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 7\nlr: 1e-3\nmodel-kwargs: {depth: 2}\nscale: [0.5, 1.0]\namp: true\n")
    second.write_text("epochs: 8\nwarmup_epochs: 2\n")
    files = ["--config", str(first), "--config", str(second), "--data-dir", "data", "--output", "run"]
    options = parse("", [*files, "--warmup-epochs", "3"])
    assert (options.epochs, options.warmup_epochs, options.lr, options.amp) == (8, 3, 1e-3, True)
    assert (options.model_kwargs, options.scale) == ({"depth": 2}, [0.5, 1.0])
