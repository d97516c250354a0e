"""Print the aligned graph of a model as Python code, with the lines that compute labels highlighted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tlfx.commands import arguments, output

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["add_arguments", "highlighted", "run"]

LABEL_STYLE = "bold green"
RELEASED_STYLE = "dim"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx code``."""
    arguments.add_model(parser)
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print the code; exit status 0."""
    from tlfx.trace import trace

    with output.progress(f"capturing {args.model}"):
        traced = trace(*arguments.model_from(args))
        aligned = traced.graph_module
    code = str(aligned.code).strip()
    console = output.console(args)
    if args.no_color or not console.is_terminal:
        print(code)
        return 0
    own = {node.name for node in traced.captured.graph_module.graph.nodes}
    labels = {node.name for node in aligned.graph.nodes} - own
    console.print(highlighted(code, labels), soft_wrap=True)
    return 0


def highlighted(code: str, labels: set[str]) -> Text:
    """Code in colour: lines that assign one of ``labels`` are highlighted, statements that release memory are dimmed.

    >>> text = highlighted("y = f(x);  x = None", {"y"})
    >>> text.plain
    'y = f(x);  x = None'
    """
    from rich.syntax import Syntax
    from rich.text import Text

    lines = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(code).split("\n")
    for line in lines:
        name = line.plain.partition("=")[0].strip()
        if name in labels:
            line.stylize(LABEL_STYLE)
        line.highlight_regex(r";  .* = None$", RELEASED_STYLE)
    return Text("\n").join(lines)
