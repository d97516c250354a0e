"""Train a classifier on folders of images, with CutMix targets that match what reaches the classifier.

    python examples/train_imagenet.py --config examples/recipes/deit_small.yaml --data-dir imagenet --output runs/deit_s
    torchrun --nproc-per-node 8 examples/train_imagenet.py --config …      # eight GPUs; --fsdp also shards the model
    python examples/train_imagenet.py --config runs/deit_s/args.yaml --resume       # after an interruption

The flags are those of timm; --method selects plain CutMix targets or the mixers and targets of other papers (Table 2).
The folder --output holds the settings (args.yaml), tables (train.csv, summary.csv; lambda_gap is the mean |λ − λ_area|
over mixtures of different classes), the same as TensorBoard events with --tensorboard, and checkpoints that timm can
read (last.pth.tar, model_best.pth.tar). The weights of a resumed run are bit-equal to those of an uninterrupted run, on
a GPU with --deterministic.
"""

from __future__ import annotations

import math
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from class_folders import message_of
from imagenet import checkpoint
from imagenet.config import check_settings, settings_of, write_config
from imagenet.data import Splits, make_transforms, open_splits, train_loader, val_loader
from imagenet.distributed import Processes, shard, start
from imagenet.engine import RunTrainer, autocast
from imagenet.evaluation import evaluate
from imagenet.logs import Logs, show_progress
from imagenet.mixing import make_mixer
from imagenet.model import align, build_model, check_weights, load_weights
from imagenet.options import parse
from imagenet.order import Batches
from rich.console import Console
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn

from tlfx.errors import InputError, TlfxError


class Run:
    """A run: data, model and progress. All settings are checked before anything is written."""

    def __init__(self, options: Namespace, processes: Processes) -> None:
        self.options, self.processes, self.folder = options, processes, Path(options.output)
        file = checkpoint.find(options.resume, self.folder)
        content = None if file is None else checkpoint.read(file)
        splits = open_splits(options)
        choose_classes(options, splits, content)
        model, config = build_model(options, options.num_classes)
        self.splits = splits.transformed(*make_transforms(options, config))
        self.batches = make_batches(len(splits.train), options, processes)
        choose_learning_rate(options, options.batch_size * self.batches.batches)
        self.settings = settings_of(options, processes.world, self.batches.updates)
        if content is not None:
            check_settings(content["settings"], self.settings)
            check_weights(model, content["state_dict"], f"--resume {file}")
        elif options.initial_checkpoint:
            load_weights(model, Path(options.initial_checkpoint), options.reset_classifier)
        self.trainer, self.epochs = make_trainer(model, config["input_size"], options, processes, self.batches.updates)
        self.epoch = 0  # the current one
        self.best: dict[str, Any] = {"top1": -math.inf, "epoch": None}
        if content is not None:
            self._resume(content)
        processes.wait()  # until all have checked that the folder may be written
        self.logs = open_logs(self) if processes.primary else None

    def _resume(self, content: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.trainer.load(content)
        progress = content["progress"]
        self.epoch, self.batches.done, self.best = progress["epoch"], progress["update"], progress["best"]

    @property
    def done(self) -> int:
        """Finished updates of the whole run."""
        return self.epoch * self.batches.updates + self.batches.done

    def train(self, console: Console) -> None:
        """Train from the current state to the end of the run."""
        loader = train_loader(self.splits, self.batches, self.options, self.processes.device)
        loader_val = val_loader(self.splits, self.processes, self.options)
        if self.processes.primary and self.epoch >= self.epochs:
            console.print(f"{self.folder}: all {self.epochs} epochs are done")
        while self.epoch < self.epochs:
            self._train_epoch(loader, console)
            figures = self._evaluate(loader_val)
            self._finish_epoch(figures, console)

    def _train_epoch(self, loader: Any, console: Console) -> None:
        """The remaining updates of an epoch."""
        batches, trainer, numbers = self.batches, self.trainer, self.batches.numbers
        batches.epoch = self.epoch
        if not batches.done:
            trainer.meter.reset()
        with show_progress(console, self.processes.primary and console.is_terminal) as bar:
            task = bar.add_task(f"epoch {self.epoch}", total=batches.updates, completed=batches.done, told="")
            began, since, iterator = time.perf_counter(), self.done, iter(loader)
            for update in range(batches.done, batches.updates):
                trainer.update([next(iterator) for _ in numbers], numbers, self.epoch, self.done + 1)
                batches.done = update + 1
                bar.update(task, completed=batches.done)
                if self.done % self.options.log_interval == 0:
                    told = self._log_update((time.perf_counter() - began) / (self.done - since))
                    bar.update(task, told=told)
                    began, since = time.perf_counter(), self.done
                if self.options.checkpoint_steps and self.done % self.options.checkpoint_steps == 0:
                    self._save()

    def _log_update(self, seconds: float) -> str:
        figures = self._figures()
        images = self.options.batch_size * self.batches.batches / seconds
        lr = self.trainer.optimizer.param_groups[0]["lr"]
        if self.logs is not None:
            self.logs.add(
                self.logs.train,
                {"updates": self.done, "epoch": self.epoch, **figures, "lr": lr, "images_per_second": round(images, 1)},
            )
        return f"loss {figures['train_loss']:.3f}, {images:.0f} images/s"

    def _figures(self) -> dict[str, float]:
        """Figures of the current epoch. Raises InputError if the loss is not finite, before writing a checkpoint."""
        figures = self.trainer.meter.figures()
        if not math.isfinite(figures["train_loss"]):
            raise InputError(
                f"the loss is {figures['train_loss']} at update {self.done}; checkpoints are unchanged. "
                "Check the images for NaN, lower --lr, set --clip-grad, or use --amp-dtype bfloat16"
            )
        return figures

    def _evaluate(self, loader: Any) -> dict[str, float]:
        """Figures of the model and of its moving average, with the batch statistics of the first process."""
        trainer, processes = self.trainer, self.processes
        models = {"": trainer.bare} if trainer.ema is None else {"": trainer.bare, "ema_": trainer.ema.module}
        figures = {}
        for prefix, model in models.items():
            if processes.world > 1:
                distribute_bn(model, processes.world, reduce=False)
            figures_of = evaluate(model, loader, len(self.splits.val), processes, trainer.autocast)
            figures.update({f"{prefix}{name}": figure for name, figure in figures_of.items()})
        return figures

    def _finish_epoch(self, tested: dict[str, float], console: Console) -> None:
        """Log an epoch, start the next one, and write a checkpoint."""
        row = {"updates": self.done, "epoch": self.epoch, **self._figures(), **tested}
        top1 = max(figure for name, figure in tested.items() if name.endswith("top1"))
        best = top1 > self.best["top1"]
        if best:
            self.best = {"top1": top1, "epoch": self.epoch}
        if self.trainer.scheduler is not None:
            self.trainer.scheduler.step(self.epoch + 1)
        if self.logs is not None:
            self.logs.add(self.logs.summary, row)
            told = ", ".join(f"{name} {figure:.4g}" for name, figure in row.items() if name not in ("epoch", "updates"))
            console.print(f"epoch {self.epoch}: {told}", highlight=False)
        self.epoch, self.batches.done = self.epoch + 1, 0
        self._save(best)

    def _save(self, best: bool = False) -> None:
        """Write a checkpoint of the run."""
        self._figures()
        progress = {"epoch": self.epoch, "update": self.batches.done, "best": self.best}
        content = {
            **self.trainer.state(),
            "arch": self.options.model,
            "num_classes": self.options.num_classes,
            "progress": progress,
            "settings": self.settings,
        }
        if self.processes.primary:
            checkpoint.write(content, self.folder, best)


def choose_classes(options: Namespace, splits: Splits, content: dict[str, Any] | None) -> None:
    """Set the number of classes from the data. Raises InputError if that of the flag or of the checkpoint differs."""
    options.num_classes = options.num_classes or splits.num_classes
    if options.num_classes < splits.num_classes:
        raise InputError(f"--num-classes {options.num_classes}: the data has {splits.num_classes} classes")
    if content is None:
        return
    if content["arch"] != options.model:
        raise InputError(f"--resume: the checkpoint is of {content['arch']}, but --model is {options.model}")
    if content["num_classes"] != options.num_classes:
        raise InputError(
            f"--resume: the checkpoint has {content['num_classes']} classes, expected {options.num_classes}; to "
            "fine-tune on other data, pass it as --initial-checkpoint with --reset-classifier"
        )


def make_batches(images: int, options: Namespace, processes: Processes) -> Batches:
    """The batches of this process. Raises InputError if there are too few images for one update."""
    count = options.grad_accum_steps * processes.world
    batches = Batches(
        images,
        options.batch_size,
        count,
        seed=options.seed,
        rank=processes.rank,
        processes=processes.world,
        repeats=options.aug_repeats,
    )
    if batches.updates == 0:
        raise InputError(
            f"{images} images are too few for one update: --batch-size {options.batch_size} in {count} batches, over "
            "processes and --grad-accum-steps"
        )
    return batches


def make_trainer(
    model: nn.Module, size: tuple[int, int, int], options: Namespace, processes: Processes, updates: int
) -> tuple[RunTrainer, int]:
    """The trainer of a model, and the number of epochs. size: of an image (C, H, W)."""
    bare, ema = place(model, options, processes)
    try:
        optimizer = create_optimizer_v2(bare, **optimizer_kwargs(cfg=options))
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"--opt {options.opt}: timm cannot create this optimiser: {error}") from error
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(options), updates_per_epoch=updates)
    called = compile_model(bare, size, options, processes.device) if options.torchcompile else bare
    if not options.fsdp:
        called = processes.data_parallel(called)
    trainer = RunTrainer(called, bare, ema, optimizer, scheduler, make_mixer(bare, options), options, processes)
    return trainer, epochs


def place(model: nn.Module, options: Namespace, processes: Processes) -> tuple[nn.Module, ModelEmaV3 | None]:
    """The model on its device, sharded and aligned as options say, and its moving average, which is not aligned."""
    if options.fsdp and not dist.is_initialized():
        raise InputError(
            "--fsdp shards a model over several processes: start them with torchrun --nproc-per-node 2 or more"
        )
    model = model.to(processes.device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    ema = None
    if options.model_ema:
        decay, warmup = options.model_ema_decay, options.model_ema_warmup
        ema = ModelEmaV3(model, decay=decay, use_warmup=warmup, foreach=not options.fsdp)
    if options.fsdp:
        for whole in [model] if ema is None else [model, ema.module]:
            shard(whole)
    return align(model, options), ema


def compile_model(model: nn.Module, size: tuple[int, int, int], options: Namespace, device: torch.device) -> nn.Module:
    """The compiled model. It is captured before, as it is called in training: a capture would break the graph."""
    images = torch.zeros(2, *size, device=device)
    if options.channels_last:
        images = images.to(memory_format=torch.channels_last)
    with autocast(options, device):
        align(model.train(), options, images)
    compiled: Any = torch.compile(model, backend=options.torchcompile)
    return compiled  # type: ignore[no-any-return]


def choose_learning_rate(options: Namespace, images: int) -> None:
    """Unless --lr is given, scale the learning rate to the number of images in an update, as timm does."""
    if options.lr is None:
        ratio = images / options.lr_base_size
        options.lr = options.lr_base * (math.sqrt(ratio) if options.lr_base_scale == "sqrt" else ratio)


def open_logs(run: Run) -> Logs:
    """Create the folder of a run with its settings and logs."""
    run.folder.mkdir(parents=True, exist_ok=True)
    logs = Logs(run.options, run.done)
    write_config(run.options, run.folder / "args.yaml")
    return logs


def make_deterministic(wanted: bool) -> None:
    """On a GPU, choose deterministic or the fastest kernels."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or exit with a message."""
    options = parse(str(__doc__), arguments)
    make_deterministic(options.deterministic)
    processes, console = None, Console()
    try:
        processes = start(options.device)
        Run(options, processes).train(console)
    except TlfxError as error:
        shown = processes is None or processes.primary
        raise SystemExit(f"train_imagenet.py: {message_of(error)}" if shown else 1) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; --resume continues from the last checkpoint") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
