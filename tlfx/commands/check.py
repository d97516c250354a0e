"""Check with random weights and images that the alignment of a model is exact.

Logits, gradients, buffers and attributes must equal those without alignment bit for bit, over three training steps.
Labels must be convex combinations of the values of the mask, and come only from pixels that the output depends on. The
exit status is 1 if any invariant is broken.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output

if TYPE_CHECKING:
    from rich.table import Table

    from tlfx.analysis.invariants import Figures
    from tlfx.analysis.support import Support

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx check``."""
    arguments.add_model(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the images, masks and random operators")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print the figures; exit status 0 if all invariants hold, 1 otherwise."""
    from tlfx.analysis.invariants import measure
    from tlfx.analysis.support import measure_support

    with output.progress(f"checking {args.model}"):
        model, images = arguments.model_from(args)
        size = tuple(images.shape[1:])
        figures, support = measure(model, size, args.seed), measure_support(model, size, args.seed)
    rows = _rows(figures, support)
    passed = all(row["passed"] for row in rows)
    if args.json:
        missing = round(support.missing, 6)
        output.print_json({"model": args.model, "passed": passed, "invariants": rows, "missing_support": missing})
    else:
        output.console(args).print(_table(args.model, rows, passed))
        output.console(args).print(_missing(support))
    return 0 if passed else 1


def _rows(figures: Figures, support: Support) -> list[dict[str, Any]]:
    from tlfx.analysis.support import measured

    return [
        {
            "name": invariant.name,
            "statement": invariant.statement,
            "figure": figure,
            "tolerance": invariant.tolerance,
            "passed": figure <= invariant.tolerance,
        }
        for invariant, figure in measured(figures, support)
    ]


def _table(model: str, rows: list[dict[str, Any]], passed: bool) -> Table:
    from rich.table import Table

    table = Table(title=f"{model}: {'all invariants hold' if passed else 'invariants are broken'}")
    for name, justify in (("invariant", "left"), ("largest violation", "right"), ("allowed", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        verdict = "[green]pass[/]" if row["passed"] else "[bold red]FAIL[/]"
        table.add_row(row["statement"], _figure(row["figure"]), _figure(row["tolerance"]), verdict)
    return table


def _missing(support: Support) -> str:
    if not support.missing:
        return "Every part of the image that an output depends on is in its label."
    return (
        f"Of the parts of the image that an output depends on, {support.missing:.0%} are not in its label: they reach "
        "it through attention weights, gates or statistics alone, or a rule leaves them out (tlfx.testing.check_rule)."
    )


def _figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"
