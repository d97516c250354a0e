"""Print the aligned graph of a model as Python code, with the lines that compute labels highlighted."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from tlfx.commands import arguments, output

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["add_arguments", "highlighted", "inlined", "run"]

LABEL_STYLE = "bold green"
RELEASED_STYLE = "dim"
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
"""A name in Python code that is not an attribute of another."""


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
    reads = {node.name for node in aligned.graph.nodes if node.op == "get_attr"}
    code = inlined(str(aligned.code).strip(), reads)
    console = output.console(args)
    if args.no_color or not console.is_terminal:
        print(code)
        return 0
    own = {node.name for node in traced.captured.graph_module.graph.nodes}
    labels = {node.name for node in aligned.graph.nodes} - own
    console.print(highlighted(code, labels), soft_wrap=True)
    return 0


def inlined(code: str, reads: set[str]) -> str:
    """Code in which parameters are read where they are used, so that it starts with the computation.

    Args:
        code: lines that each assign one name, as torch.fx writes them.
        reads: the names that hold parameters, buffers and constants.

    >>> print(inlined("def forward(self, x):\\n    w = self.m.w;  y = f(x, w);  w = None", set()))
    def forward(self, x):
        w = self.m.w;  y = f(x, w);  w = None
    >>> print(inlined("    w = self.m.w\\n    y = f(x, w);  x = w = None\\n    z = f(y, y);  y = None", {"w"}))
        y = f(x, self.m.w);  x = None
        z = f(y, y);  y = None
    """
    read: dict[str, str] = {}
    lines = []
    for line in code.split("\n"):
        name, _, value = line.partition(" = ")
        if name.strip() in reads:
            read[name.strip()] = value.partition(";  ")[0]
            continue
        statement, separator, released = line.partition(";  ")
        statement = _NAME.sub(lambda match: read.get(match[0], match[0]), statement)
        kept = [n for n in released.split(" = ") if n not in read]
        lines.append(statement + (separator + " = ".join(kept) if len(kept) > 1 else ""))
    return "\n".join(lines)


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
