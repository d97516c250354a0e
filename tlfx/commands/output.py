"""Console output of commands: colour, width, pipes and JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_color", "console", "print_json"]

PIPED_WIDTH = 120


def add_color(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--no-color``."""
    parser.add_argument("--no-color", action="store_true", help="print plain text, as into a pipe")


def console(args: argparse.Namespace, stderr: bool = False) -> Console:
    """A console with the width and colours of the terminal; plain text in a pipe and with ``--no-color``."""
    from rich.console import Console

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
