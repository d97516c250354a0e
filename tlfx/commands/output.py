"""Console output of commands: colour, width, pipes and JSON."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_color", "console", "prepare_streams", "print_json", "progress", "wrote"]

PLAIN = str.maketrans({
    **dict.fromkeys("─━═–—−", "-"), **dict.fromkeys("│┃║├", "|"), "└": "`", "█": "#", "→": ">", "←": "=", "×": "x",
    "·": ".", "…": "~", "λ": "lambda", "Σ": "sum", "ᵢ": "i", "ᵀ": "T", "²": "2", "±": "+-", "≤": "<=", "≥": ">=",
})  # fmt: skip
"""What stands for characters that the encoding of a stream lacks; any other is a question mark."""


def prepare_streams() -> None:
    """Let stdout and stderr print text in any encoding: line art and symbols become plain characters where it lacks
    them."""
    codecs.register_error("tlfx.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="tlfx.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A handler of :func:`codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show a line on stderr while the body runs, if it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    print(f"{text} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # back to the start of the line, and clear it


def wrote(file: object) -> None:
    """Tell on stderr which file was written; stdout may hold JSON."""
    print(f"wrote {file}", file=sys.stderr)


def add_color(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--no-color``."""
    parser.add_argument("--no-color", action="store_true", help="print plain text, as into a pipe")


def console(args: argparse.Namespace, stderr: bool = False) -> Console:
    """A console with the width and colours of the terminal; plain text in a pipe and with ``--no-color``."""
    from rich.console import Console

    from tlfx.report.report import PIPED_WIDTH

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(
        stderr=stderr, width=width, color_system=None if args.no_color else "auto", highlight=False, soft_wrap=False
    )


def print_json(data: Any) -> None:
    """Print data as indented JSON, keys in the given order.

    >>> print_json({"passed": True})
    {
      "passed": true
    }
    """
    print(json.dumps(data, indent=2, ensure_ascii=False))
