"""List the operators with a rule, and for each the rule, its rule pack and plugin.

With --missing MODEL, list instead the operators that the model calls on image content and that have no rule, and print
templates of rules for them. The exit status is then 1 if there are any.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output
from tlfx.errors import named

if TYPE_CHECKING:
    from rich.table import Table

    from tlfx.analysis.missing import Missing
    from tlfx.rules.registry import Rule

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx rules``."""
    arguments.add_model(parser, "--missing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print operators with a rule, exit status 0; or without one, exit status 1 if there are any."""
    if args.model is not None:
        return _run_missing(args)
    from tlfx.rules.registry import ENTRY_POINTS, REGISTRY

    packs = list(importlib.metadata.entry_points(group=ENTRY_POINTS))
    rows = sorted((_row(r, packs) for r in REGISTRY), key=lambda row: row["operator"])
    if args.json:
        output.print_json(rows)
    else:
        output.console(args).print(_table(f"{len(rows)} operators", rows))
    return 0


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


def _row(rule: Rule, packs: list[importlib.metadata.EntryPoint]) -> dict[str, Any]:
    """A rule with the entry point of its module, or with its file if no entry point registered it."""
    module = f"{rule.origin.rpartition('.')[0]}."
    pack = next((p for p in packs if module.startswith(f"{p.module}.")), None)
    distribution = pack.dist if pack is not None else None
    return {
        "operator": rule.name,
        "rule": rule.origin,
        "pack": pack.name if pack is not None else rule.file,
        "plugin": f"{distribution.name} {distribution.version}" if distribution is not None else None,
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
