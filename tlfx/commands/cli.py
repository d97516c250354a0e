"""The command line: one module of :mod:`tlfx.commands` for each command, imported only if the command is used.

Exit statuses: 0 for success, 1 if a command found a broken invariant or a missing rule, 2 for invalid input.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import ModuleType

import tlfx
from tlfx.commands import output
from tlfx.errors import TlfxError
from tlfx.zoo import models

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "inspect": "show every operator of a model with its class and tokens",
    "code": "print the aligned graph of a model as Python code",
    "check": "check that the alignment of a model is exact",
    "rules": "list the operators with a rule, or those of a model without one",
    "show": "draw the label map of a mixed image, layer by layer",
    "fluctuation": "measure how far contributions of input tokens and mixing ratios drift, layer by layer",
    "fidelity": "compare aligned labels of a trained model with the influence of each image on its output",
    "bench": "time training steps with alignment against the same steps without",
    "zoo": "analyse many models of timm and torchvision and write a CSV file",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (default: ``sys.argv[1:]``) and return the exit status.

    >>> main(["rules", "--missing", "test_vit"])
    test_vit: every operator that receives image content has a rule
    0
    """
    if argv is None:
        _tune_garbage_collection()
    output.prepare_streams()
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser(given).parse_args(given)
    try:
        models.add_paths(getattr(args, "path", []))  # files of rules may import from there too
        with _rules(getattr(args, "rules", [])):
            status = int(_command(args.command).run(args))
        sys.stdout.flush()  # at exit, a full disk would be a traceback
        return status
    except TlfxError as error:
        if args.debug:
            traceback.print_exc()
        print(f"tlfx {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _drop_output()  # the reader (head, a pager) has closed the pipe
        return 0
    except OSError as error:
        if args.debug:
            traceback.print_exc()
        _drop_output()
        print(f"tlfx {args.command}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _drop_output() -> None:
    """Send what is left in stdout nowhere: Python would raise again when it flushes it at exit."""
    with suppress(OSError, ValueError):  # not a file of the system, as in tests and notebooks
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tune_garbage_collection() -> None:
    """Collect garbage less often: the million permanent objects of the imports make collections cost three seconds."""
    gc.set_threshold(200_000, 20, 20)
    atexit.register(gc.freeze)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the command that is named in ``given`` is imported and adds its arguments."""
    parser = argparse.ArgumentParser(
        prog="tlfx",
        description="Token-label alignment for any PyTorch vision model.",
        epilog="Each command has its own help: tlfx inspect --help",
    )
    parser.add_argument("--version", action="version", version=f"tlfx {tlfx.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in given:
            module = _command(name)
            sub.description = module.__doc__
            module.add_arguments(sub)
    return parser


def _rules(files: Sequence[str]) -> AbstractContextManager[None]:
    """A context in which the rules of files are registered; torch is imported only if there are any."""
    if not files:
        return nullcontext()
    from tlfx.rules import use_rules

    return use_rules(*files)


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"tlfx.commands.{name}")
