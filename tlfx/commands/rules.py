"""List the operators with a rule, all or those that match PATTERN: for each the rule, the plugin that registers it, and
the package of the plugin.

With --missing MODEL, list instead the operators that the model calls on image content and that have no rule, and print
templates of rules for them. The exit status is then 1 if there are any.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output
from tlfx.errors import InputError, named

if TYPE_CHECKING:
    from rich.table import Table

    from tlfx.analysis.missing import Missing
    from tlfx.rules.registry import Rule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx rules``."""
    parser.add_argument(
        "pattern", metavar="PATTERN", nargs="?", help="only operators like this: 'aten.conv*', or softmax"
    )
    arguments.add_model(parser, "--missing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print operators with a rule, exit status 0; or without one, exit status 1 if there are any."""
    if args.model is not None and args.pattern is not None:
        raise InputError(f"{args.pattern!r} and --missing were both given: use only one of them")
    if args.model is not None:
        return _run_missing(args)
    from tlfx.report.style import count
    from tlfx.rules.registry import ENTRY_POINTS, REGISTRY

    plugins = {entry: _package_of(entry) for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    rows = sorted((_row(r, plugins) for r in REGISTRY), key=lambda row: row["operator"])
    if args.pattern is not None:
        rows = _matching(rows, args.pattern)
    if args.json:
        output.print_json(rows)
    else:
        output.console(args).print(_table(count(len(rows), "operator"), rows))
    return 0


def _matching(rows: list[dict[str, Any]], pattern: str) -> list[dict[str, Any]]:
    """Rows whose operator matches a shell pattern or contains it. InputError with similar names if there are none."""
    wildcard = any(c in pattern for c in "*?[")
    matches = [r for r in rows if (fnmatchcase(r["operator"], pattern) if wildcard else pattern in r["operator"])]
    if not matches:
        names = {row["operator"].rpartition(".")[2]: row["operator"] for row in rows}
        near = [names[n] for n in difflib.get_close_matches(pattern.rpartition(".")[2], names, n=5)]
        hint = f"; did you mean {', '.join(near)}?" if near else "; tlfx rules lists them all"
        raise InputError(f"no operator with a rule matches {pattern!r}{hint}")
    return matches


def _run_missing(args: argparse.Namespace) -> int:
    from tlfx.analysis.missing import HEADER, missing

    with output.progress(f"capturing {args.model}"):
        unknown = missing(*arguments.model_from(args))
    if args.json:
        output.print_json([_missing_row(m) | {"skeleton": m.skeleton()} for m in unknown])
    elif not unknown:
        print(f"{args.model}: every operator that receives image content has a rule")
    else:
        rows = [_missing_row(m) | {"modules": named(m.places, most=3)} for m in unknown]
        # The table goes to stderr, so that the code can be redirected to a file.
        output.console(args, stderr=True).print(_table(f"{args.model}: {len(unknown)} operators without a rule", rows))
        print("\n\n".join([HEADER, *(m.skeleton() for m in unknown)]), end="")
    return 1 if unknown else 0


def _package_of(entry: importlib.metadata.EntryPoint) -> str | None:
    """Name and version of the distribution that has an entry point: its metadata are parsed at each reading."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else None


def _row(rule: Rule, plugins: Mapping[importlib.metadata.EntryPoint, str | None]) -> dict[str, Any]:
    """A rule with the entry point of its module, or with its file if no entry point registered it."""
    module = f"{rule.origin.rpartition('.')[0]}."
    plugin = next((p for p in plugins if module.startswith(f"{p.module}.")), None)
    return {
        "operator": rule.name,
        "rule": rule.origin,
        "plugin": plugin.name if plugin is not None else rule.file,
        "package": plugins[plugin] if plugin is not None else None,
    }


def _missing_row(missing: Missing) -> dict[str, Any]:
    return {"operator": missing.name, "calls": len(missing.nodes), "modules": missing.places}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    return table
