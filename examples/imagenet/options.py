"""The command line: flags with the names of timm, and those of alignment."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence

from timm.utils import ParseKwargs

from imagenet.checkpoint import NEWEST
from imagenet.config import parse_with_config
from imagenet.data import DATASETS
from imagenet.mixing import METHODS, PATCHWISE, choose_method, mixes
from tlfx.errors import InputError
from tlfx.policy import DEFAULT, OPTIONS

__all__ = ["make_parser", "parse"]


def parse(description: str, arguments: Sequence[str] | None = None) -> Namespace:
    """Options of the command line. Flags override the files of `--config`, where later files override earlier ones."""
    return parse_with_config(make_parser(description), arguments, choose_method, _check)


def make_parser(description: str) -> ArgumentParser:
    """A parser with all flags, in groups."""
    parser = ArgumentParser(
        usage="%(prog)s [--config FILE] --data-dir DIR --output DIR [flags]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # files are read first, which requires complete names
    )
    parser.add_argument("-c", "--config", action="append", default=[], metavar="FILE", help="YAML file of options, "
        "such as one of examples/recipes; later files override earlier ones, and flags override files")  # fmt: skip
    for add_group in (_data, _model, _align, _optimizer, _schedule, _augmentation, _mixing, _machine, _run):
        add_group(parser)
    return parser


def _data(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="folder of the data set, such as one with train/ and val/ in it")
    add("--dataset", default="", choices=list(DATASETS), help="one of torchvision's (default: classes in folders)")
    add("--train-split", default="train", metavar="NAME", help="folder to train on (default: %(default)s)")
    add("--val-split", default="val", metavar="NAME", help="folder to validate with (default: %(default)s)")
    add("--dataset-download", action="store_true", help="let torchvision fetch the data set")
    add("-j", "--workers", type=int, default=4, metavar="N", help="loading processes (default: %(default)s)")


def _model(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default="deit_small_patch16_224", help="as tlfx takes it: a timm name, torchvision:NAME or "
        "package.module:factory (default: %(default)s)")  # fmt: skip
    add("--path", action="append", default=[], metavar="DIR", help="folder to import a model from; may be repeated")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="arguments of the model")
    add("--num-classes", type=int, metavar="N", help="classes of the classifier (default: those of the data)")
    add("--img-size", type=int, metavar="N", help="height and width of images (default: the model's own)")
    add("--initial-checkpoint", metavar="FILE", help="initial weights, or their moving average if the file has one")
    add("--reset-classifier", action="store_true", help="do not load the classifier from --initial-checkpoint")
    add("--drop", type=float, metavar="P", help="dropout rate (default: the model's own)")
    add("--drop-path", type=float, metavar="P", help="drop path rate (default: the model's own)")
    add("--grad-checkpointing", action="store_true", help="recompute blocks in the backward pass to save memory")
    add("--channels-last", action="store_true", help="use the channels_last memory format for images and weights")
    add("--torchcompile", "--compile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")


def _align(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("method").add_argument
    add(
        "--method",
        choices=METHODS,
        help="a method of Table 2, instead of --align and --align-layers: CutMix with plain (area), TransMix or "
        "aligned targets, or another mixer with plain targets",
    )
    add("--attention-model", default="resnet50", metavar="NAME", help="network of --method attentive")
    add("--attention-checkpoint", metavar="FILE", help="its weights (default: those that timm downloads)")
    add("--attention-patches", type=int, default=6, metavar="N", help="patches that it pastes (default: %(default)s)")
    add("--align", action=BooleanOptionalAction, default=True, help="train against the labels that reach the "
        "classifier, or against area targets (default: --align)")  # fmt: skip
    add("--align-layers", nargs="+", metavar="LAYER", help="align only these modules, such as "
        "'blocks.[0-5]', or attention layers by number, -1 for the last (default: all)")  # fmt: skip
    add("--residual", choices=OPTIONS["residual"], default=DEFAULT.residual, help="label of a residual connection, as "
        "in tlfx.Policy (default: %(default)s, the paper's)")  # fmt: skip
    add("--target-scale", type=float, default=1.0, metavar="X", help="factor of the aligned targets in the loss, for "
        "labels that are not normalised (default: %(default)s)")  # fmt: skip


def _optimizer(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("optimiser").add_argument
    add("--opt", default="adamw", help="an optimiser of timm (default: %(default)s)")
    add("--opt-eps", type=float, metavar="EPS", help="(default: the optimiser's own)")
    add("--opt-betas", type=float, nargs="+", metavar="BETA", help="(default: the optimiser's own)")
    add("--momentum", type=float, default=0.9, help="(default: %(default)s)")
    add("--weight-decay", type=float, default=0.05, help="(default: %(default)s)")
    add("--layer-decay", type=float, help="factor of the learning rate between layers (default: none)")
    add("--clip-grad", type=float, metavar="NORM", help="clip gradients (default: no clipping)")
    add("--clip-mode", choices=("norm", "value", "agc"), default="norm", help="(default: %(default)s)")
    add("-b", "--batch-size", type=int, default=128, metavar="N", help="images of one process and one step")
    add("--grad-accum-steps", type=int, default=1, metavar="N", help="steps in an update (default: %(default)s)")


def _schedule(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("schedule").add_argument
    add("--epochs", type=int, default=300, metavar="N", help="(default: %(default)s)")
    add("--sched", choices=("cosine", "tanh", "step", "poly", "none"), default="cosine", help="(default: %(default)s)")
    add("--sched-on-updates", action="store_true", help="set the learning rate after each update, not each epoch")
    add("--lr", type=float, metavar="LR", help="learning rate (default: from --lr-base)")
    add("--lr-base", type=float, default=5e-4, metavar="LR", help="learning rate for --lr-base-size images an update, "
        "scaled to their actual number (default: %(default)s)")  # fmt: skip
    add("--lr-base-size", type=int, default=512, metavar="N", help="(default: %(default)s)")
    add("--lr-base-scale", choices=("linear", "sqrt"), default="linear", help="(default: %(default)s)")
    add("--warmup-epochs", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--warmup-lr", type=float, default=1e-6, metavar="LR", help="(default: %(default)s)")
    add("--min-lr", type=float, default=1e-5, metavar="LR", help="(default: %(default)s)")
    add("--cooldown-epochs", type=int, default=0, metavar="N", help="epochs at --min-lr (default: %(default)s)")
    add("--decay-epochs", type=float, default=30, metavar="N", help="of --sched step (default: %(default)s)")
    add("--decay-rate", type=float, default=0.1, metavar="RATE", help="of --sched step and poly (default: %(default)s)")


def _augmentation(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation").add_argument
    add("--no-aug", action="store_true", help="only resize and crop, as for validation")
    add("--scale", type=float, nargs=2, default=[0.08, 1.0], metavar="PART", help="area of random crops")
    add("--ratio", type=float, nargs=2, default=[3 / 4, 4 / 3], metavar="RATIO", help="aspect ratio of random crops")
    add("--hflip", type=float, default=0.5, metavar="P", help="(default: %(default)s)")
    add("--vflip", type=float, default=0.0, metavar="P", help="(default: %(default)s)")
    add("--color-jitter", type=float, default=0.4, help="used without --aa (default: %(default)s)")
    add("--aa", metavar="POLICY", help="auto-augmentation, such as rand-m9-mstd0.5-inc1 (default: none)")
    add("--aug-repeats", type=int, default=1, metavar="N", help="repeats of each image in sequence, 3 in DeiT")
    add("--reprob", type=float, default=0.0, metavar="P", help="probability of random erasing (default: %(default)s)")
    add("--remode", choices=("const", "rand", "pixel"), default="pixel", help="(default: %(default)s)")
    add("--recount", type=int, default=1, metavar="N", help="boxes to erase (default: %(default)s)")
    add("--train-interpolation", default="random", metavar="NAME", help="random, bilinear or bicubic")
    add("--interpolation", metavar="NAME", help="for validation (default: the model's own)")
    add("--crop-pct", type=float, metavar="PART", help="for validation (default: the model's own)")
    add("--mean", type=float, nargs="+", help="of pixel values (default: the model's own)")
    add("--std", type=float, nargs="+", help="of pixel values (default: the model's own)")


def _mixing(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("mixing and labels").add_argument
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="0 for none (default: %(default)s)")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="0 for none (default: %(default)s)")
    add("--cutmix-minmax", type=float, nargs=2, metavar="PART", help="sides of boxes, instead of --cutmix")
    add("--mixup-prob", type=float, default=1.0, metavar="P", help="probability of mixing (default: %(default)s)")
    add("--mixup-switch-prob", type=float, default=0.5, metavar="P", help="probability of CutMix if both are used")
    add("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="(default: %(default)s)")
    add("--patch-mixer", choices=list(PATCHWISE), help="replace random patches or blocks of patches (Table 7), instead "
        "of --mixup and --cutmix")  # fmt: skip
    add("--mix-patch-size", type=int, default=16, metavar="N", help="its patches, in pixels (default: %(default)s)")
    add("--mixup-off-epoch", type=int, default=0, metavar="N", help="do not mix from this epoch on (default: mix)")
    add("--smoothing", type=float, default=0.1, help="label smoothing (default: %(default)s)")


def _machine(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="cpu, cuda, mps, or auto for the accelerator if there is one")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="(default: %(default)s)")
    add("--fsdp", action="store_true", help="shard the model over the processes, block by block")
    add("--deterministic", action="store_true", help="use deterministic kernels on a GPU, which are slower")
    add("--seed", type=int, default=42, help="seed of weights, order, augmentation and mixing (default: %(default)s)")


def _run(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--output", metavar="DIR", help="folder of checkpoints, logs and settings; one for each run")
    add("--resume", nargs="?", const=NEWEST, metavar="FILE", help="resume a run with the same settings from a "
        "checkpoint (default: the last one in --output)")  # fmt: skip
    add("--checkpoint-steps", type=int, default=0, metavar="N", help="also write a checkpoint every N updates")
    add("--log-interval", type=int, default=50, metavar="N", help="updates between rows of train.csv")
    add("--tensorboard", action="store_true", help="also write events for TensorBoard")
    add("--validation-batch-size", type=int, metavar="N", help="(default: --batch-size)")
    add("--model-ema", action="store_true", help="keep a moving average of the weights, and evaluate it")
    add("--model-ema-decay", type=float, default=0.9998, metavar="D", help="(default: %(default)s)")
    add("--model-ema-warmup", action="store_true", help="start with less decay")


AT_LEAST_ONE = (
    *("batch_size", "grad_accum_steps", "epochs", "log_interval", "aug_repeats", "recount", "lr_base_size"),
    *("validation_batch_size", "num_classes", "img_size", "attention_patches", "mix_patch_size"),
)
NOT_NEGATIVE = (
    *("workers", "checkpoint_steps", "mixup", "cutmix", "warmup_epochs", "cooldown_epochs", "mixup_off_epoch"),
    *("lr", "lr_base", "weight_decay", "warmup_lr", "min_lr", "clip_grad"),
)
SHARES = ("mixup_prob", "mixup_switch_prob", "smoothing", "reprob", "hflip", "vflip", "model_ema_decay")


def _check(options: Namespace) -> None:
    """Raise InputError for invalid options."""
    for name in ("data_dir", "output"):
        if getattr(options, name) is None:
            folder = "the data" if name == "data_dir" else "the run"
            raise InputError(f"{_flag(name)} is missing: pass the folder of {folder}")
    for names, low, high, expected in (
        (AT_LEAST_ONE, 1, math.inf, "a number of at least 1"),
        (NOT_NEGATIVE, 0, math.inf, "a number of at least 0"),
        (SHARES, 0, 1, "a share between 0 and 1"),
    ):
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        for name, value in given.items():
            if not low <= value <= high:
                raise InputError(f"{_flag(name)} {value}: expected {expected}")
    if options.method is not None and not mixes(options):
        raise InputError(
            f"--method {options.method} chooses the target of mixed images, but no images are mixed: pass --cutmix "
            "1.0, --mixup 0.8 or both, or omit --method to train without mixing"
        )
    if mixes(options) and options.batch_size % 2:
        raise InputError(
            f"--batch-size {options.batch_size}: images are mixed in pairs within a batch of one process; pass an even "
            "number, or --mixup 0 --cutmix 0"
        )
    for name, value in (("residual", DEFAULT.residual), ("target_scale", 1.0)):
        if getattr(options, name) != value and not options.align:
            raise InputError(f"{_flag(name)} is for aligned targets: omit it, or --no-align")
    if not 0.0 < options.target_scale < math.inf:
        raise InputError(f"--target-scale {options.target_scale}: expected a positive number")
    if options.align_layers and not options.align:
        raise InputError("--align-layers and --no-align contradict each other: omit one of them")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
