"""Check with random weights and images that the alignment of a model is exact.

Logits, gradients and buffers must equal those without alignment bit for bit. Labels must be convex combinations of the
values of the mask. The exit status is 1 if any invariant is broken.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output

if TYPE_CHECKING:
    from rich.table import Table

    from tlfx.analysis.invariants import Figures

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

    model, images = arguments.model_from(args)
    figures = measure(model, tuple(images.shape[1:]), args.seed)
    if args.json:
        output.print_json(_as_dict(args.model, figures))
    else:
        output.console(args).print(_table(args.model, figures))
    return 0 if figures.passed else 1


def _as_dict(model: str, figures: Figures) -> dict[str, Any]:
    from tlfx.analysis.invariants import INVARIANTS

    rows = [
        {
            "name": i.name,
            "statement": i.statement,
            "figure": getattr(figures, i.name),
            "tolerance": i.tolerance,
            "passed": figures.holds(i),
        }
        for i in INVARIANTS
    ]
    return {"model": model, "passed": figures.passed, "invariants": rows}


def _table(model: str, figures: Figures) -> Table:
    from rich.table import Table

    from tlfx.analysis.invariants import INVARIANTS

    table = Table(title=f"{model}: {'all invariants hold' if figures.passed else 'invariants are broken'}")
    for name, justify in (("invariant", "left"), ("largest violation", "right"), ("allowed", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for invariant in INVARIANTS:
        verdict = "[green]pass[/]" if figures.holds(invariant) else "[bold red]FAIL[/]"
        violation = getattr(figures, invariant.name)
        table.add_row(invariant.statement, _figure(violation), _figure(invariant.tolerance), verdict)
    return table


def _figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"
