"""Flags that segmentation and detection share."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from imagenet.checkpoint import NEWEST
from imagenet.config import parse_with_config
from timm.utils import ParseKwargs

from tlfx.errors import InputError

__all__ = ["backbone_file", "make_parser", "parse_options"]

AT_LEAST_ONE = ("batch_size", "grad_accum_steps", "num_classes", "log_interval", "eval_steps")
NOT_NEGATIVE = ("workers", "checkpoint_steps", "warmup", "lr", "weight_decay", "clip_grad", "drop_path")


def make_parser(description: str) -> ArgumentParser:
    """A parser with the flags of any task."""
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], metavar="FILE", help="YAML file of options; flags override it")
    add("--data-dir", metavar="DIR", help="folder of the data set")
    add("--output", metavar="DIR", help="folder of checkpoints, logs and settings; one for each run")
    add("--backbone-checkpoint", metavar="FILE", help="weights of the backbone, such as a checkpoint of "
        "train_imagenet.py, in any layout of convert_checkpoint.py (default: random weights)")  # fmt: skip
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="of the backbone")
    add("--resume", nargs="?", const=NEWEST, metavar="FILE", help="resume a run with the same settings from a "
        "checkpoint (default: the last one in --output)")  # fmt: skip
    add("--evaluate", metavar="FILE", help="evaluate the weights of a checkpoint of a run, and exit")
    add("-b", "--batch-size", type=int, default=2, metavar="N", help="images of one process and one step; the "
        "official runs have 16 in an update: 8 processes of 2 (default: %(default)s)")  # fmt: skip
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="steps in an update (default: %(default)s)")
    add("--weight-decay", type=float, metavar="D", help="(default: %(default)s)")
    add("--lr", type=float, metavar="LR", help="(default: %(default)s)")
    add("--warmup", type=int, metavar="N", help="updates of warm-up (default: %(default)s)")
    add("--drop-path", type=float, metavar="P", help="(default: %(default)s)")
    add("--clip-grad", type=float, metavar="NORM", help="clip gradients (default: no clipping)")
    add("--clip-mode", choices=("norm", "value", "agc"), default="norm", help="(default: %(default)s)")
    add("--num-classes", type=int, metavar="N", help="(default: %(default)s)")
    add("--eval-steps", type=int, metavar="N", help="evaluate every N updates (default: %(default)s)")
    add("--checkpoint-steps", type=int, default=0, metavar="N", help="also write a checkpoint every N updates")
    add("--log-interval", type=int, default=50, metavar="N", help="updates between rows of train.csv")
    add("--tensorboard", action="store_true", help="also write events for TensorBoard")
    add("-j", "--workers", type=int, default=4, metavar="N", help="loading processes (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, mps, or auto for the accelerator if there is one")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="(default: %(default)s)")
    add("--channels-last", action="store_true", help="use the channels_last memory format")
    add("--seed", type=int, default=42, help="of weights, order, augmentation and mixing (default: %(default)s)")
    return parser


def parse_options(
    parser: ArgumentParser, arguments: Sequence[str] | None, check: Callable[[Namespace], None]
) -> Namespace:
    """Options of the command line, which override those of --config; exits for invalid ones."""
    return parse_with_config(parser, arguments, _check, check)


def backbone_file(options: Namespace) -> Path | None:
    """The weights that the backbone of a new run starts from; a checkpoint of a run holds them itself."""
    new = options.resume is None and options.evaluate is None
    return Path(options.backbone_checkpoint) if new and options.backbone_checkpoint is not None else None


def _check(options: Namespace) -> None:
    if options.data_dir is None:
        raise InputError("--data-dir is missing: pass the folder of the data")
    if options.output is None and options.evaluate is None:
        raise InputError("--output is missing: pass the folder of the run")
    for names, low in ((AT_LEAST_ONE, 1), (NOT_NEGATIVE, 0)):
        for name in names:
            value = getattr(options, name)
            if value is not None and not value >= low:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected a number of at least {low}")
