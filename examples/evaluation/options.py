"""The command line of examples/evaluate.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluation.attacks import ATTACKS, NORMS, Threat
from evaluation.corruption import ALEXNET, CORRUPTIONS
from evaluation.folders import DATASETS
from tlfx.errors import InputError
from tlfx.system.devices import choose_device

__all__ = ["EPS", "Settings", "parse"]

EPS = 8 / 255
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Settings:
    """Settings of the command line."""

    model: str
    checkpoint: Path | None
    use_ema: bool
    kwargs: dict[str, Any]
    path: list[str]
    dataset: str
    data_dir: Path
    class_map: Path | None
    clean_dir: Path | None
    baseline: Path
    corruptions: tuple[str, ...]
    threat: Threat | None
    images: int | None
    seed: int
    batch_size: int
    workers: int
    img_size: int | None
    crop_pct: float | None
    interpolation: str | None
    mean: list[float] | None
    std: list[float] | None
    device: torch.device
    amp: bool
    json: Path | None


def parse(description: str | None, arguments: Sequence[str] | None = None) -> Settings:
    """Settings of the command line. Exits with a message if they contradict each other."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for add in (_add_model, _add_data, _add_attack, _add_machine):
        add(parser)
    options = vars(parser.parse_args(arguments))
    if options.pop("pretrained") != (options["checkpoint"] is None):
        parser.error("pass either --checkpoint FILE, or --pretrained for the weights that timm publishes")
    if options["use_ema"] and options["checkpoint"] is None:
        parser.error("--use-ema requires --checkpoint; published weights have no moving average")
    options["threat"] = _read_threat(options, parser)
    if options["json"] is not None and not options["json"].absolute().parent.is_dir():
        parser.error(f"there is no folder {str(options['json'].parent)!r} to write {options['json'].name} into")
    if options["dataset"] != "folder" and options["class_map"] is not None:
        parser.error(f"--class-map requires --dataset folder; the classes of {options['dataset']} are known")
    for name in ("baseline", "clean_dir", "corruptions"):
        if options["dataset"] != "imagenet-c" and options[name] is not None:
            parser.error(f"--{name.replace('_', '-')} requires --dataset imagenet-c, not {options['dataset']}")
    corruptions = tuple(dict.fromkeys(options["corruptions"] or CORRUPTIONS))
    return Settings(**{**options, "corruptions": corruptions, "baseline": options["baseline"] or ALEXNET})


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, help="a timm name, torchvision:NAME, or an import path package.module:factory")
    add("--checkpoint", type=Path, metavar="FILE", help="weights, as timm or torch.save writes them")
    add("--pretrained", action="store_true", help="weights that timm downloads, instead of --checkpoint")
    add("--use-ema", action="store_true", help="use the moving average in the checkpoint")
    add("--kwargs", type=_json_object, default={}, metavar="JSON", help="arguments of the model")
    add("--path", metavar="DIR", action="append", default=[], help="directory to import from; may be repeated")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("images").add_argument
    add("--data-dir", type=Path, required=True, metavar="FOLDER", help="folder of class folders, or of val/ with them")
    add("--dataset", choices=DATASETS, default="imagenet", help="data set in this folder (default: %(default)s)")
    add("--class-map", type=Path, metavar="FILE", help="names of all classes in the order of the logits, one per line")
    add("--baseline", type=Path, metavar="FILE", help="errors that mCE is relative to (default: AlexNet's)")
    add("--clean-dir", type=Path, metavar="FOLDER", help="images without corruption, for the relative mCE")
    add("--corruptions", nargs="+", metavar="NAME", help="corruptions to evaluate (default: all 15)")
    add("--images", type=_natural, metavar="N", help="number of images of a folder, drawn by --seed (default: all)")
    add("--img-size", type=_natural, metavar="PIXELS", help="side of the images (default: the model's own)")
    add("--crop-pct", type=_fraction, help="share of the side that is kept (default: the model's, 1 for ImageNet-C)")
    add("--interpolation", choices=INTERPOLATIONS, help="how images are resized (default: the model's own)")
    add("--mean", type=float, nargs=3, help="mean of the pixels, by channel (default: the model's own)")
    add("--std", type=float, nargs=3, help="their standard deviation (default: the model's own)")


def _add_attack(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("attack").add_argument
    add("--attack", choices=ATTACKS, help="AutoAttack, one of its four parts, FGSM or PGD")
    add("--eps", type=_fraction, help="bound of the perturbation, such as 4/255 (default for Linf: 8/255)")
    add("--norm", choices=NORMS, default="Linf", help="norm of perturbations (default: %(default)s)")
    add("--steps", type=_natural, default=10, help="steps of PGD, each of 2.5 eps / steps (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the attack and of --images (default: %(default)s)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine and output").add_argument
    add("--batch-size", type=_natural, default=128, help="images at a time (default: %(default)s)")
    workers = partial(_natural, least=0)
    add("--workers", type=workers, default=4, help="processes that read images (default: %(default)s)")
    add("--device", type=_device, default="auto", help="cpu, cuda, mps, or auto for the accelerator if there is one")
    add("--amp", action="store_true", help="evaluate in mixed precision; not for attacks, which need exact gradients")
    add("--json", type=Path, metavar="FILE", help="write the figures to this file")


def _read_threat(options: dict[str, Any], parser: argparse.ArgumentParser) -> Threat | None:
    """The attack of the options, which are removed from them."""
    name, eps, norm, steps = (options.pop(key) for key in ("attack", "eps", "norm", "steps"))
    if name is None:
        if eps is not None:
            parser.error(f"--eps requires --attack, one of {', '.join(ATTACKS)}")
        return None
    if options["dataset"] == "imagenet-c":
        parser.error("--attack requires images without corruption; choose another --dataset")
    if options["amp"]:
        parser.error("--attack needs exact gradients; omit --amp")
    if eps is None and norm != "Linf":
        parser.error(f"--norm {norm} requires --eps; the default of 8/255 is for Linf only")
    return Threat(name, norm, EPS if eps is None else eps, options["seed"], steps)


def _natural(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if value <= 0.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0, such as 8/255 or 0.03")
    return value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a JSON object such as '{{\"depth\": 4}}'")
    return value


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device ")) from error
