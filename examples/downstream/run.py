"""A run of a number of updates: progress, evaluation, logs and checkpoints, for any task."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from class_folders import message_of
from imagenet import checkpoint
from imagenet.config import check_settings, settings_of, write_config
from imagenet.distributed import Processes, start
from imagenet.engine import RunTrainer
from imagenet.logs import Logs, show_progress
from imagenet.order import Batches, Reproducible
from rich.console import Console
from timm.utils import distribute_bn
from torch import nn
from torch.utils.data import DataLoader

from tlfx.errors import InputError, ModelError, TlfxError
from tlfx.zoo.weights import differences

__all__ = ["Run", "Task", "check_weights", "run_or_exit"]


@dataclass
class Task:
    """What a run trains.

    model: on its device. train: the training images. collate: makes a batch of them. trainer and updates: the trainer,
    and the number of updates of the run, given that of an epoch. evaluate: figures of the model, called by all
    processes. best: the figure by which the best checkpoint is chosen.
    """

    model: nn.Module
    train: Any
    collate: Callable[[Any], Any]
    trainer: Callable[[int], RunTrainer]
    evaluate: Callable[[], dict[str, float]]
    updates: Callable[[int], int]
    best: str


WEIGHTS = "--backbone-checkpoint"
MakeTask = Callable[[Namespace, Processes], Task]
"""Makes the task of the options, after checks of the data."""


class Run:
    """A run: a task and its progress. All settings are checked before anything is written."""

    def __init__(self, make_task: MakeTask, options: Namespace, processes: Processes) -> None:
        self.options, self.processes, self.folder = options, processes, Path(options.output)
        file = checkpoint.find(options.resume, self.folder)
        content = None if file is None else checkpoint.read(file, weights_flag=WEIGHTS)
        if content is not None:
            _check_classes(content, options)
        self.task = task = make_task(options, processes)
        self.batches = _batches(len(task.train), options, processes)
        self.updates = task.updates(self.batches.updates)
        self.settings = settings_of(options, processes.world, self.batches.updates)
        if content is not None:
            check_settings(content["settings"], self.settings, WEIGHTS)
            check_weights(task.model, content["state_dict"], f"--resume {file}")
        self.trainer = task.trainer(self.batches.updates)
        self.done, self.best = 0, {"updates": 0, task.best: -math.inf}
        if content is not None:
            self.trainer.load(content)
            self.done, self.best = content["progress"]["update"], content["progress"]["best"]
        processes.wait()  # until all have checked that the folder may be written
        self.logs = self._open_logs() if processes.primary else None

    def _open_logs(self) -> Logs:
        self.folder.mkdir(parents=True, exist_ok=True)
        logs = Logs(self.options, self.done)
        write_config(self.options, self.folder / "args.yaml")
        return logs

    def train(self, console: Console) -> None:
        """Train from the current state to the end of the run."""
        if self.done >= self.updates and self.processes.primary:
            console.print(f"{self.folder}: all {self.updates} updates are done")
        loader = _loader(self.task, self.batches, self.options, self.processes)
        with show_progress(console, self.processes.primary and console.is_terminal) as bar:
            shown = bar.add_task("training", total=self.updates, completed=self.done, told="")
            while self.done < self.updates:
                self._train_epoch(loader, console, lambda told: bar.update(shown, completed=self.done, told=told))

    def _train_epoch(self, loader: DataLoader[Any], console: Console, show: Callable[[str], None]) -> None:
        """The remaining updates of an epoch, or of the run."""
        batches, trainer = self.batches, self.trainer
        batches.epoch, batches.done = divmod(self.done, batches.updates)
        if not batches.done:
            trainer.meter.reset()
        began, since, told, iterator = time.perf_counter(), self.done, "", iter(loader)
        for _ in range(min(batches.updates - batches.done, self.updates - self.done)):
            given = [next(iterator) for _ in batches.numbers]
            trainer.update(given, batches.numbers, batches.epoch, self.done + 1)
            self.done += 1
            if self.done % self.options.log_interval == 0:
                told = self._log((time.perf_counter() - began) / (self.done - since))
                began, since = time.perf_counter(), self.done
            show(told)
            self._keep(console)

    def _log(self, seconds: float) -> str:
        figures, images = self._figures(), self.options.batch_size * self.batches.batches / seconds
        row = {"updates": self.done, **figures, "lr": self.trainer.optimizer.param_groups[0]["lr"]}
        if self.logs is not None:
            self.logs.add(self.logs.train, {**row, "images_per_second": round(images, 1)})
        return f"loss {figures['train_loss']:.3f}, {images:.0f} images/s"

    def _figures(self) -> dict[str, float]:
        """Figures of training. Raises InputError if the loss is not finite, before a checkpoint is written."""
        figures = self.trainer.meter.figures()
        if not math.isfinite(figures["train_loss"]):
            raise InputError(
                f"the loss is {figures['train_loss']} at update {self.done}; checkpoints are unchanged. "
                "Lower --lr, set --clip-grad, or use --amp-dtype bfloat16"
            )
        if self.trainer.mixer is None:
            del figures["lambda_gap"]
        return figures

    def _keep(self, console: Console) -> None:
        """Evaluate and write checkpoints where the options ask for it, and at the end."""
        steps = self.options.checkpoint_steps
        if self.done % self.options.eval_steps == 0 or self.done == self.updates:
            self._evaluate(console)
        elif steps and self.done % steps == 0:
            self._save(best=False)

    def _evaluate(self, console: Console) -> None:
        if self.processes.world > 1:  # running averages of batch norm are those of the first process
            distribute_bn(self.task.model, self.processes.world, reduce=False)
        tested = self.task.evaluate()
        row = {"updates": self.done, **self._figures(), **tested}
        best = tested[self.task.best] > self.best[self.task.best]
        if best:
            self.best = {"updates": self.done, self.task.best: tested[self.task.best]}
        if self.logs is not None:
            self.logs.add(self.logs.summary, row)
            console.print(_told(row), highlight=False)
        self._save(best)

    def _save(self, best: bool) -> None:
        self._figures()
        content = {
            **self.trainer.state(),
            "arch": self.options.backbone,
            "num_classes": self.options.num_classes,
            "progress": {"update": self.done, "best": self.best},
            "settings": self.settings,
        }
        if self.processes.primary:
            checkpoint.write(content, self.folder, best)


def _told(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {figure:.4g}" if name != "updates" else f"update {figure}" for name, figure in row.items()
    )


def _check_classes(content: dict[str, Any], options: Namespace) -> None:
    if content["num_classes"] != options.num_classes:
        raise InputError(
            f"the checkpoint has {content['num_classes']} classes, but --num-classes is {options.num_classes}; to "
            "train on other classes, start another run with --backbone-checkpoint"
        )
    if content["arch"] != options.backbone:
        raise InputError(f"the checkpoint is of {content['arch']}, but --backbone is {options.backbone}")


def _batches(images: int, options: Namespace, processes: Processes) -> Batches:
    """The batches of this process. Raises InputError if there are too few images for one update."""
    count = options.grad_accum_steps * processes.world
    batches = Batches(
        images, options.batch_size, count, seed=options.seed, rank=processes.rank, processes=processes.world
    )
    if batches.updates == 0:
        raise InputError(
            f"{images} images are too few for one update: --batch-size {options.batch_size} in {count} batches, over "
            "processes and --grad-accum-steps"
        )
    return batches


def _loader(task: Task, batches: Batches, options: Namespace, processes: Processes) -> DataLoader[Any]:
    return DataLoader(
        Reproducible(task.train, options.seed),
        batch_sampler=batches,
        collate_fn=task.collate,
        num_workers=options.workers,
        pin_memory=processes.device.type == "cuda",
    )


def check_weights(model: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Raise ModelError unless weights have the names and shapes of a model's; the message names what differs."""
    if different := differences(weights, model.state_dict()):
        raise ModelError(f"{source} does not fit the model: {different}. Compare --backbone and --model-kwargs")


def evaluate_weights(
    make_task: Callable[[Namespace, Processes], Task], options: Namespace, processes: Processes
) -> str:
    """Figures of a checkpoint of a run, as a line."""
    file = Path(options.evaluate)
    content = checkpoint.read(file, "--evaluate", WEIGHTS) if file.is_file() else None
    if content is None:
        raise InputError(f"--evaluate: there is no file {file}")
    _check_classes(content, options)
    task = make_task(options, processes)
    check_weights(task.model, content["state_dict"], f"--evaluate {file}")
    task.model.load_state_dict(content["state_dict"])
    return _told({"updates": content["progress"]["update"], **task.evaluate()})


def run_or_exit(script: str, make_task: MakeTask, options: Namespace) -> None:
    """Train or evaluate as the options say, or exit with a message."""
    processes, began, console = None, False, Console()
    try:
        processes = start(options.device)
        if options.evaluate is not None:
            told = evaluate_weights(make_task, options, processes)
            if processes.primary:
                console.print(told, highlight=False, soft_wrap=True)
        else:
            run = Run(make_task, options, processes)
            began = True
            run.train(console)
    except TlfxError as error:
        shown = began or processes is None or processes.primary  # before, all processes have the same error
        raise SystemExit(f"{script}: {message_of(error)}" if shown else 1) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; --resume continues from the last checkpoint") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
