"""Measure token fluctuation: the contribution of input tokens and the mixing ratio, layer by layer.

Pairs of random crops of photos from scikit-image are mixed by CutMix. The presence of an input token over depth is 1 if
all input tokens contribute equally to a layer; --operations prints the presence p(z) in each attention, token MLP and
convolution by itself (equation 2 of the TL-Align paper). The mixing ratio λ, the share of the first image, is given for
plain CutMix, TransMix (only models with a class token), tokens that keep their labels, TL-Align, and by similarity
(equation 13). Models have random weights unless --weights or --pretrained is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tlfx.commands import arguments, output
from tlfx.errors import InputError
from tlfx.zoo.weights import load_weights

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from tlfx.analysis.fluctuation import Figures

__all__ = ["add_arguments", "run"]

HEADS = {"area": "λ area", "transmix": "TransMix", "fixed": "fixed", "similarity": "eq. 13", "aligned": "TL-Align"}
"""Mixing ratios and their column heads."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx fluctuation``."""
    arguments.add_model(parser, several=True)
    parser.add_argument("--pairs", metavar="N", type=int, default=16, help="mixed pairs for RMSE; default: 16")
    parser.add_argument(
        "--presence", metavar="N", type=int, default=2, help="pairs with presence over depth; default: 2, 0 for none"
    )
    parser.add_argument(
        "--operations", action="store_true", help="also print the presence in each spatial operation by itself"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, pairs and mixing; default: 0")
    parser.add_argument("--csv", metavar="FILE", help="write all figures, a line for each layer and pair")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw presence over depth and λ by layer into a PNG, PDF or SVG file"
    )
    parser.add_argument(
        "--bars", metavar="FILE", help="draw the RMSE between CutMix and TL-Align targets over the number of parameters"
    )
    arguments.add_weights(parser, several=True)
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table for each model; exit status 0."""
    from tlfx.analysis.fluctuation import as_csv
    from tlfx.analysis.plotting import FORMATS, check_file, write

    _check(args)
    files = (("--csv", args.csv, (".csv",)), ("--plot", args.plot, FORMATS), ("--bars", args.bars, FORMATS))
    for option, file, formats in files:
        if file:
            check_file(file, option, formats)
    console = output.console(args)
    measured, parameters = {}, {}
    for place, name in enumerate(_names(args)):
        model, size = _build(args, place)
        parameters[name] = sum(p.numel() for p in model.parameters())
        measured[name] = _measure(args, name, model, size, console)
    if args.csv:
        write(as_csv([f for figures in measured.values() for f in figures]), args.csv)
        output.wrote(args.csv)
    if args.plot:
        _plot(measured, args.plot)
        output.wrote(args.plot)
    if args.bars:
        _draw_bars(measured, parameters, args.bars)
        output.wrote(args.bars)
    if len(measured) > 1:
        console.print(_summary(measured))
    return 0


def _check(args: argparse.Namespace) -> None:
    """InputError for options that contradict each other, before any work."""
    if args.pairs < 1 or not 0 <= args.presence <= args.pairs:
        raise InputError(
            f"--pairs {args.pairs} --presence {args.presence}: expected at least one pair, and presence for at most "
            "all pairs"
        )
    if args.plot and not args.presence:
        raise InputError("--plot draws presence: pass --presence 1 or more, or --bars, which needs none")
    if args.weights and len(args.weights) != len(args.models):
        raise InputError(
            f"--weights was given {len(args.weights)} times for {len(args.models)} models, expected once per model"
        )
    names = _names(args)
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise InputError(f"{twice} was given twice; give each model once, or each time with different --weights")


def _names(args: argparse.Namespace) -> list[str]:
    """Names of the models; with the file of weights if a model is given several times."""
    names: list[str] = args.models
    files = args.weights or [""] * len(names)
    several = args.weights and len(set(names)) < len(names)
    return [f"{name} ({file})" if several else name for name, file in zip(names, files, strict=True)]


def _build(args: argparse.Namespace, place: int) -> tuple[nn.Module, tuple[int, ...]]:
    """One of the models with its weights, and the size of its images. Raises InputError if it takes no images."""
    import torch

    args.model = args.models[place]
    torch.manual_seed(args.seed)
    model, example = arguments.model_from(args)
    if example.dim() != 4 or example.shape[1] != 3:
        size = "x".join(map(str, example.shape[1:]))
        raise InputError(f"{args.model} takes inputs of {size}, expected images of three channels, 3xHxW")
    if args.weights:
        load_weights(model, args.weights[place])
    return model, tuple(example.shape[1:])


def _measure(
    args: argparse.Namespace, name: str, model: nn.Module, size: tuple[int, ...], console: Console
) -> list[Figures]:
    """Measure one model and print its tables."""
    from tlfx.analysis.fluctuation import fluctuation

    figures = fluctuation(name, model, size, args.pairs, args.presence, args.seed)
    console.print(_layers(name, figures))
    if args.operations:
        console.print(_operations(name, model, size, args.seed))
    return figures


def _operations(name: str, model: nn.Module, size: tuple[int, ...], seed: int) -> Table:
    """Presence of the tokens that enter each spatial operation, for the first mixed image."""
    from tlfx.analysis.fluctuation import Spread
    from tlfx.analysis.pairs import photo_pairs
    from tlfx.analysis.photos import normalised
    from tlfx.analysis.presence import spatial_presence

    caption = "presence p(z) of eq. 2 in one operation: 1 where all tokens contribute equally to as many mixed tokens"
    table = _table(name, caption, "operation", ("tokens", "least", "median", "most", "faded"))
    image = normalised(photo_pairs(1, size[-2:], seed).mixed[0], model)
    for layer in spatial_presence(model, image):
        p = Spread.of(layer.presence)
        figures = (f"{x:.2f}" for x in (p.least, p.median, p.most))
        table.add_row(f"{layer.path} ({layer.operator})", str(len(layer.presence)), *figures, f"{p.faded:.1%}")
    return table


def _plot(measured: Mapping[str, Sequence[Figures]], file: str) -> None:
    from tlfx.analysis.curves import draw_fluctuation
    from tlfx.analysis.plotting import save

    save(draw_fluctuation(measured), file)


def _draw_bars(measured: Mapping[str, Sequence[Figures]], parameters: Mapping[str, int], file: str) -> None:
    from tlfx.analysis.curves import draw_bars
    from tlfx.analysis.plotting import save

    save(draw_bars(measured, parameters), file)


def _layers(name: str, figures: Sequence[Figures]) -> Table:
    """Presence and λ of the first pair in each layer, and the RMSE of λ to the area over all pairs."""
    from tlfx.analysis.fluctuation import by_layer, rmse
    from tlfx.report.style import count

    pairs = 1 + max(f.pair for f in figures)
    note = "" if any(f.transmix is not None for f in figures) else "\nthe classifier reads no class token: no TransMix"
    caption = f"λ and presence of the first pair; RMSE of TL-Align to area over {count(pairs, 'pair')}{note}"
    table = _table(name, caption, "layer", ("tokens", "least", "median", "most", "faded", *HEADS.values(), "RMSE"))
    for layer in by_layer(figures):
        one, p = layer[0], layer[0].presence
        present = ["–"] * 4 if p is None else [*(f"{x:.2f}" for x in (p.least, p.median, p.most)), f"{p.faded:.1%}"]
        shares = [_number(getattr(one, method)) for method in HEADS]
        table.add_row(one.layer, f"{one.height}×{one.width}", *present, *shares, _number(rmse(layer, "area")))
    return table


def _summary(measured: Mapping[str, Sequence[Figures]]) -> Table:
    """Comparison of models at their outputs."""
    from tlfx.analysis.fluctuation import by_layer, rmse

    caption = "in the output: faded input tokens, and RMSE of each λ to the target of TL-Align (similarity: last block)"
    table = _table("all models", caption, "model", ("faded", "area", "TransMix", "similarity"))
    for name, figures in measured.items():
        *_, last, end = by_layer(figures)
        faded = [f.presence.faded for f in end if f.presence is not None]
        errors = (rmse(end, "area"), rmse(end, "transmix"), rmse(last, "similarity"))
        table.add_row(name, f"{sum(faded) / len(faded):.1%}" if faded else "–", *map(_number, errors))
    return table


def _table(title: str, caption: str, first: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
