"""Every equation, table and figure of the paper (Xiao et al., ICCV 2023) by one command.

    python examples/paper.py --list                            # what each is, its command, and the file of its test
    python examples/paper.py table 8                           # the small version: embedded digits, minutes on a CPU
    python examples/paper.py table 8 --data-dir IMAGENET       # the paper's runs; --print shows their commands only
    python examples/paper.py table 8 --data-dir IMAGENET --print -- --fsdp         # flags after -- go to each run
    python examples/paper.py table 3 --data-dir ADE20K --weights DIR               # from models trained before
    python examples/paper.py figure 3 --pretrained             # or --weights FILE for each model, in order
    python examples/paper.py equation 13                       # compares tlfx with the slow twin of the equation

Figures of the paper stand in columns of their own, whose heads begin with "paper:". A small version has other models,
data and training lengths, so that its figures show that the run works, not whether the paper's are right.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from class_folders import message_of
from reproduction import dense, digits, labels, trained
from reproduction.contents import CONTENTS
from reproduction.printed import TABLES
from reproduction.real import RealRuns
from reproduction.runs import DIGITS, accuracies, cells_of, measure_digits, measure_imagenet
from rich import box
from rich.console import Console
from rich.table import Table
from training import add_recipe, read_recipe

from tlfx.commands import cli
from tlfx.errors import InputError, TlfxError

ROOT = Path(__file__).resolve().parents[1]
DEIT = tuple(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base"))
SWIN = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base"))
OPERATIONS = ("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224", "convnext_tiny")
"""Models whose operations Table 10 lists."""


def listing() -> Table:
    """All contents of the paper with their commands and tests."""
    table = _table(("", "what it is", "command", "test"))
    for item in CONTENTS:
        table.add_row(*item)
    return table


def run_equation(number: int, options: argparse.Namespace) -> int:
    """Compare tlfx with the slow twin of an equation."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        f"equation_{number:02d}",
        str(ROOT / "tests/test_equations.py"),
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def run_table(number: int, options: argparse.Namespace) -> int:
    """Run what a table needs, and print it in the layout of the paper."""
    if number == 10:
        return max(cli.main(["inspect", name, "--depth", "1"]) for name in options.models or OPERATIONS)
    title, heads, rows = (_after_training if number in AFTER_TRAINING else _training)(number, options)
    _console().print(_filled(f"Table {number}. {title}", heads, rows))
    if options.data_dir is None and number in digits.NOTES:
        _console().print(digits.NOTES[number], highlight=False)
    if options.markdown:
        options.markdown.write_text(_markdown(heads, rows))
    return 0


Made = tuple[str, list[str], list[list[str]]]
"""Title, heads and rows of a table."""


def _training(number: int, options: argparse.Namespace) -> Made:
    """A table whose rows are runs of training."""
    table, data, weights = TABLES[number], options.data_dir, options.weights
    if data is None:
        rows = measure_digits(table, options.recipe, range(options.seeds), options.output / "digits", options.jobs)
        return table.title, cells_of(table, DIGITS), rows
    folder, processes, show = options.output / f"table{number}", options.nproc, options.print
    rows = measure_imagenet(table, data, folder, processes, weights[0] if weights else None, options.extra, show)
    return table.title, cells_of(table, accuracies(table)), rows


def _after_training(number: int, options: argparse.Namespace) -> Made:
    """A table whose rows are models that were trained before, on ImageNet or on digits."""
    table = AFTER_TRAINING[number]
    if options.data_dir is None:
        if table.small is None:
            raise InputError(
                f"Table {number} has no small version: pass --data-dir and --weights; --print shows commands"
            )
        columns, make = table.small
        rows = make(options.recipe, range(options.seeds), options.output / "digits", options.jobs)
    elif options.weights:
        folder = options.output / f"table{number}"
        runs = RealRuns(options.data_dir, options.weights[0], folder, options.nproc, options.print, options.extra)
        columns, rows = table.columns, table.make(runs)
    else:
        raise InputError(
            f"Table {number} starts from trained models: pass --weights with the folder of {table.weights}.pth, "
            f"{table.weights}_aligned.pth and so on"
        )
    return table.title, ["Model", *columns, *(f"paper: {name}" for name in (*table.size, *table.columns))], rows


class AfterTraining(NamedTuple):
    """A table of models that were trained before.

    size: printed columns that are not measured, before those that are. columns, make: measured columns of the real
    version, and the function that makes its rows. weights: the first model. small: columns and function on digits.
    """

    title: str
    size: Sequence[str]
    columns: Sequence[str]
    make: Callable[[RealRuns], list[list[str]]]
    weights: str
    small: tuple[Sequence[str], Callable[..., list[list[str]]]] | None = None


AFTER_TRAINING = {
    3: AfterTraining(
        "Results on semantic segmentation ADE20K", trained.SIZE, list(dense.SEGMENTATION), dense.segment, "deit_small"
    ),
    4: AfterTraining(
        "Object detection and instance segmentation on COCO (new: Mask R-CNN; paper: Cascade Mask R-CNN)",
        (*trained.SIZE, "Schedule"),
        list(dense.DETECTION),
        dense.detect,
        "swin_tiny",
    ),
    5: AfterTraining(
        "The accuracy and model complexity on different transfer learning datasets",
        trained.SIZE,
        list(trained.DATASETS),
        trained.transfer,
        "deit_tiny",
        (list(digits.SETS), digits.transfer),
    ),
    6: AfterTraining(
        "Comparison results of model generalization ability and robustness",
        trained.SIZE,
        list(trained.SETS),
        trained.evaluate,
        "deit_tiny",
        (digits.SHIFTS, digits.evaluate),
    ),
}


def run_figure(number: int, options: argparse.Namespace) -> int:
    """Draw a figure into --picture, or print the code that figure 2 illustrates."""
    file = options.picture or Path(f"figure{number}.png")
    if number in BY_TLFX:
        weights = [word for path in options.weights for word in ("--weights", str(path))]
        given = [*weights, *(["--pretrained"] if options.pretrained else [])]
        command, models, rest = BY_TLFX[number]
        rest = [str(file) if word == "FILE" else word for word in rest]
        return cli.main([command, *(options.models or models), *rest, *given])
    others = options.models or FIGURES[number]
    first = options.weights[0] if options.weights else None
    if number == 6:
        labels.similarities(others[0], first, options.pretrained, file)
    elif number == 7:
        labels.mixtures(224, seed=0, file=file)
    else:
        pairs = options.pairs or (2 if number == 5 else 4)
        labels.label_embeddings(others, options.weights, options.pretrained, pairs, file)
    print(f"wrote {file}", file=sys.stderr)
    return 0


BY_TLFX = {
    1: ("show", DEIT[1:2], ["-o", "FILE"]),
    2: ("code", DEIT[:1], []),
    3: ("fluctuation", DEIT + SWIN, ["--presence", "0", "--bars", "FILE"]),
    4: ("fluctuation", DEIT[1:2], ["--pairs", "1", "--presence", "1", "--plot", "FILE"]),
}
"""Figures that a command of tlfx makes: its name, its models, and further arguments."""
FIGURES = {5: [DEIT[1], SWIN[1]], 6: [DEIT[1]], 7: [], 8: [DEIT[1], SWIN[1]]}
"""Models of the other figures."""


def _table(heads: Sequence[str], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _console() -> Console:
    """At least as wide as the tables of the paper: a narrow terminal wraps lines, not words."""
    return Console(width=max(160, Console().width))


def _filled(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = _table(heads, title)
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, [":--"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


KINDS = {"equation": (13, run_equation), "table": (10, run_table), "figure": (8, run_figure)}
"""How many of each kind the paper has, and what runs one."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line; those after -- are kept as ``extra``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("kind", nargs="?", choices=list(KINDS), help="what to make")
    add("number", nargs="?", type=int, help="its number in the paper")
    add("--list", action="store_true", help="list all equations, tables and figures")
    add("--data", choices=["digits"], default="digits", help="data of the small version (default: %(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="ImageNet, or the data sets of Tables 3 to 6, for the real runs")
    add("--print", action="store_true", help="with --data-dir, print the commands and what is finished; start nothing")
    add("--nproc", type=int, default=1, metavar="N", help="processes of a real run, started by torchrun")
    add("--weights", type=Path, action="append", default=[], metavar="FILE", help="weights of each model of a figure, "
        "in order; for tables, a folder of files")  # fmt: skip
    add("--pretrained", action="store_true", help="published weights for figures; may download them")
    add("--models", nargs="+", metavar="MODEL", help="other models for Table 10 and figures 1 to 6 and 8")
    add("--pairs", type=int, metavar="N", help="pairs of images for figures 5 and 8")
    add("--picture", type=Path, metavar="FILE", help="where to draw a figure (default: figureN.png)")
    add("--seeds", type=int, default=1, help="runs on digits for each row (default: %(default)s)")
    add("--jobs", type=int, default=1, help="processes for runs on digits (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/paper"), help="folder of finished runs (default: %(default)s)")
    add("--markdown", type=Path, help="also write a table to this file")
    add_recipe(parser)
    options = parser.parse_args(words[:cut])
    options.extra = words[cut + 1 :]
    if not options.list:
        _check(parser, options)
        options.recipe = read_recipe(parser, options, 0)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.kind is None or options.number is None:
        parser.error("expected equation, table or figure with a number, or --list")
    most = KINDS[options.kind][0]
    if not 1 <= options.number <= most:
        parser.error(f"{options.kind} {options.number}: the paper has {options.kind}s 1 to {most}")
    if options.kind == "table" and options.weights and options.data_dir is None:
        parser.error("--weights of a table are for real runs: pass --data-dir")
    if options.extra and options.data_dir is None:
        parser.error("flags after -- are for real runs: pass --data-dir")
    if options.seeds < 1 or options.jobs < 1 or options.nproc < 1:
        parser.error("expected at least 1 of --seeds, --jobs and --nproc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what the command line names. Returns the exit status."""
    options = parse(arguments)
    if options.list:
        _console().print(listing())
        return 0
    try:
        return KINDS[options.kind][1](options.number, options)
    except TlfxError as error:
        print(f"paper.py: {message_of(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
