"""Show every operator of a model: its class in Table 10, its label rule, and its tokens before and after.

Repeated blocks are folded. The sums below the tree are over the whole model, also if only a part of it is shown. Two
models are shown side by side, class by class.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlfx.commands import arguments, output
from tlfx.errors import InputError
from tlfx.system.files import check_writable, write_atomically

if TYPE_CHECKING:
    from tlfx.report import NodeReport, Report

__all__ = ["add_arguments", "run"]

FORMS = ("dot", "graphml", "svg", "html")
"""Options that write the report to a file, or to standard output for ``-``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx inspect``."""
    arguments.add_model(parser)
    parser.add_argument("other", metavar="OTHER", nargs="?", help="another model: show both side by side, by class")
    parser.add_argument("--nodes", action="store_true", help="list every node of the graph, including constants")
    parser.add_argument("--module", metavar="PATTERN", help="only these modules, such as 'blocks.0' or '*.attn'")
    parser.add_argument("--only", metavar="CLASSES", help="only these classes, such as spatial,residual")
    parser.add_argument("--depth", metavar="N", type=int, help="expand N levels of modules")
    parser.add_argument("--eval", action="store_true", help="inspect the model in evaluation mode (default: training)")
    parser.add_argument("--json", action="store_true", help="print JSON (format: tlfx.report.Report.to_dict)")
    for form in FORMS:
        parser.add_argument(f"--{form}", metavar="FILE", help=f"write {form.upper()} to a file, or - to print it")
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print or write the report; exit status 0."""
    if args.depth is not None and args.depth < 1:
        raise InputError(f"--depth {args.depth}: expected 1 or more")
    if args.other is not None:
        return _compare(args)
    forms = [form for form in FORMS if getattr(args, form)]
    part = "--module" if args.module else "--only" if args.only else None
    if forms and part and not args.json:
        raise InputError(
            f"--{forms[0]} writes the whole model and would ignore {part}: leave it out, or pass --json too"
        )
    for form in forms:
        if getattr(args, form) != "-":
            check_writable(getattr(args, form), f"--{form}")
    with output.progress(f"capturing {args.model}"):
        report = _report(args)
    chosen = report.select(args.module, args.only) if args.module or args.only else None
    if chosen is not None and not chosen:
        raise InputError(_nothing_chosen(report, args.module, args.only))
    for form in forms:
        _write(getattr(report, f"to_{form}")(), getattr(args, form))
    if args.json:
        output.print_json(report.to_dict(chosen))
    elif not forms:
        _show(args, report, chosen)
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Print two models side by side; exit status 0."""
    from tlfx.report.comparison import comparison

    options = ("nodes", "module", "only", "depth", "json", *FORMS)
    given = [f"--{name}" for name in options if getattr(args, name) not in (None, False)]
    if given:
        raise InputError(f"{', '.join(given)}: options for one model, and two were given")
    names, reports = [args.model, args.other], []
    for args.model in names:
        with output.progress(f"capturing {args.model}"):
            reports.append(_report(args))
    output.console(args).print(comparison(names, reports))
    return 0


def _report(args: argparse.Namespace) -> Report:
    """The report of a model by name."""
    from tlfx.inspection import inspect

    kwargs, size = arguments.options_from(args)
    return inspect(args.model, input_size=size, training=not args.eval, kwargs=kwargs, paths=args.path)


def _write(text: str, file: str) -> None:
    if file == "-":
        sys.stdout.write(text)
        return
    write_atomically(file, lambda raw: raw.write(text.encode()))
    output.wrote(file)


def _nothing_chosen(report: Report, module: str | None, only: str | None) -> str:
    """Why no node was chosen, with the modules of similar names."""
    if module is None or report.select(module):
        return f"no node {'of the model' if module is None else f'inside {module!r}'} is of the classes {only}"
    paths = list(dict.fromkeys(node.module for node in report.nodes if node.module))
    near = difflib.get_close_matches(module, paths, n=5, cutoff=0.5) or paths[:5]
    return f"--module {module!r} matches no module with nodes; similar names are {', '.join(near)}"


def _show(args: argparse.Namespace, report: Report, chosen: Sequence[NodeReport] | None) -> None:
    """Print the report, through a pager if it is longer than the terminal."""
    from tlfx.operations import Operation
    from tlfx.report.text import View

    console = output.console(args)
    if chosen is not None and args.only is None and not args.nodes:
        chosen = [node for node in chosen if node.operation is not Operation.CONSTANT]
    view = View(report, chosen, args.depth, flat=args.nodes)
    if not console.is_terminal or len(console.render_lines(view)) < console.height:
        console.print(view)
        return
    os.environ.setdefault("LESS", "-R")
    with console.pager(styles=not args.no_color):
        console.print(view)
