"""Time training steps with alignment against the same steps without: the median of paired ratios.

Three kinds of step alternate on one model in one process: plain CutMix, the captured graph without labels, and the
aligned model. Capture is not timed. The machine should be idle otherwise. The spread is the interquartile range of the
ratios; memory is the peak memory of the tensors of a step. --against published adds the formulation of the published
code: labels with one column per class, and explicit attention. --capture times the one-time work before the first step.
The call is the median time until the model returns, on a GPU the work of the host; kernels are those that it launches,
on a CPU its operators other than views. --suite measures the cases of the project's table of speed: on a GPU eight
models at 224 pixels in bfloat16, as people train them, on a CPU small images.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tlfx.commands import arguments, output
from tlfx.commands.suite import figures, suite
from tlfx.errors import InputError
from tlfx.policy import parse_policy
from tlfx.system.files import check_writable

if TYPE_CHECKING:
    from rich.table import Table

    from tlfx.analysis.speed import Settings, Timing

__all__ = ["add_arguments", "run"]

TYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tlfx bench``."""
    arguments.add_model(parser, several=True, fewest=0)
    parser.add_argument(
        "--suite", action="store_true", help="measure the cases of the project's table instead of MODELs"
    )
    parser.add_argument("--markdown", metavar="FILE", help="also write the table of --suite to this file")
    parser.add_argument("--batch", metavar="N", type=int, default=16, help="images in a batch; default: 16")
    parser.add_argument("--pairs", metavar="N", type=int, default=9, help="pairs of steps to time; default: 9")
    parser.add_argument(
        "--steps",
        metavar="N",
        type=int,
        default=1,
        help="training steps that are timed together, with an optimizer step each and without waiting for the device "
        "between them, as in training; default: 1, without an optimizer step",
    )
    parser.add_argument(
        "--capture",
        action="store_true",
        help="time the one-time work before the first step: capture, propagation, rewriting",
    )
    parser.add_argument("--forward", action="store_true", help="time only the forward pass, without gradients")
    parser.add_argument("--dtype", choices=TYPES, default="float32", help="types other than float32 use autocast")
    parser.add_argument("--attention", choices=("auto", "fused", "reuse"), default="auto", help="as in tlfx.align")
    parser.add_argument(
        "--policy",
        metavar="FIELD=VALUE[,…]",
        default="paper",
        help="a label policy other than the paper's, such as influence or residual=norm",
    )
    parser.add_argument("--compile", action="store_true", help="run all kinds of step through torch.compile")
    parser.add_argument("--against", choices=("published",), help="also time another formulation")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default): a GPU if there is one")
    parser.add_argument("--threads", metavar="N", type=int, help="number of CPU threads; default: torch's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    output.add_color(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table of ratios, or of the costs of capture; the exit status is always 0."""
    # Must be set before torch is imported: the profiler that measures memory logs to stderr otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    if min(args.batch, args.pairs, args.steps, args.threads or 1) < 1:
        raise InputError("--batch, --pairs, --steps and --threads must be positive")
    if args.suite == bool(args.models):
        raise InputError("expected one or more MODELs, or --suite without MODEL")
    if args.markdown and not args.suite:
        raise InputError("--markdown writes the table of --suite: pass --suite, or --json")
    if args.markdown:
        check_writable(args.markdown, "--markdown")
    if args.threads:
        torch.set_num_threads(args.threads)
    data, table = suite(args) if args.suite else _captures(args) if args.capture else _steps(args)
    if args.json:
        output.print_json(data)
    else:
        output.console(args).print(table)
    return 0


def _steps(args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Ratios of step times, as data and as a table."""
    from tlfx.analysis.speed import bench

    settings = _settings(args)
    timed: dict[str, dict[str, Timing]] = {}
    for name in args.models:
        args.model = name
        with output.progress(f"timing {name}"):
            model, images = arguments.model_from(args)
            timed[name] = bench(model, tuple(images.shape[1:]), settings)
    rows = {name: {k: figures(t) for k, t in timings.items()} for name, timings in timed.items()}
    return rows, _table(timed, settings)


def _captures(args: argparse.Namespace) -> tuple[dict[str, Any], Table]:
    """Time and memory of the one-time work before the first step, as data and as a table."""
    from rich.table import Table

    from tlfx.analysis.preparation import prepare

    table = Table(title="before the first step, seconds")
    for column in ("model", "operators", "capture", "propagate", "rewrite", "all", "analysis memory"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rows: dict[str, Any] = {}
    for name in args.models:
        args.model = name
        with output.progress(f"capturing {name}"):
            cost = prepare(*arguments.model_from(args))
        rows[name] = {**asdict(cost), "seconds": cost.seconds}
        stages = (f"{s:.2f}" for s in (cost.capture, cost.propagate, cost.rewrite, cost.seconds))
        table.add_row(name, str(cost.operators), *stages, f"{cost.memory / 2**20:.0f} MiB")
    return rows, table


def _settings(args: argparse.Namespace) -> Settings:
    import torch

    from tlfx.analysis.speed import Settings
    from tlfx.system.devices import choose_device

    device = str(choose_device(args.device))
    return Settings(
        batch=args.batch,
        pairs=args.pairs,
        steps=args.steps,
        forward_only=args.forward,
        dtype=getattr(torch, args.dtype),
        device=device,
        attention=args.attention,
        policy=parse_policy(args.policy),
        compile=args.compile,
        published=args.against == "published",
    )


def _table(timed: dict[str, dict[str, Timing]], settings: Settings) -> Table:
    from rich.table import Table

    what = "forward" if settings.forward_only else "training step"
    if settings.compile:
        what = f"compiled {what}"
    if settings.steps > 1:
        what = f"{settings.steps} {what}s in a row"
    kind = str(settings.dtype).removeprefix("torch.")
    table = Table(title=f"{what}, batch {settings.batch}, {kind}, {settings.device}, {settings.pairs} pairs")
    for name, justify in (("model", "left"), ("step", "left"), *((n, "right") for n in _COLUMNS)):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for model, timings in timed.items():
        for place, (step, timing) in enumerate(timings.items()):
            table.add_row("" if place else model, step, *_cells(timing))
    return table


_COLUMNS = ("time", "spread", "images/s", "call, ms", "kernels", "memory", "")


def _cells(timing: Timing) -> list[str]:
    low, high = timing.spread
    return [
        f"{timing.ratio:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{timing.throughput:.1f}",
        f"{1000 * timing.call:.1f}",
        "–" if timing.kernels is None else str(timing.kernels),
        f"{timing.memory_ratio:.3f}",
        f"{timing.memory / 2**20:.0f} MiB",
    ]
