"""Compare plain and aligned CutMix, or other methods, on four small architectures, in pairs of runs of one seed.

    python examples/compare.py                                   # 4 architectures × 12 seeds × 6 methods
    python examples/compare.py --architectures vit               # one of them; the table without training
    python examples/compare.py --jobs 4 --markdown table.md      # four processes; the table as Markdown too
    python examples/compare.py --methods plain saliencymix/plain puzzlemix/plain transmix aligned
    python examples/compare.py --architectures vit --table 2     # the seven rows of the paper's Table 2 by their names

Runs of one seed share initial weights, order and backgrounds; with one mixer they also share the mixing and differ
only in their targets. Figures of finished runs are kept in the file --figures, which is part of the repository, and
those runs are not trained again; interrupted ones are. Weights are kept in the folder --output.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from statistics import fmean, median, stdev

import torch
from architectures import ARCHITECTURES, ATTENTION
from experiment import Result, Run, SettingsError, execute, finished
from figures import FIGURES, add_figures, read_figures
from methods import Method, read_method
from mixers import MIXERS
from paired import paired_difference, sign_test
from rich.console import Console
from rich.progress import track
from rich.table import Table
from training import Recipe, add_recipe, read_recipe

COLUMNS = (
    *("architecture", "method", "runs", "accuracy, %", "difference (95 % interval)", "seeds won", "sign test, p"),
    *("λ gap", "parameters", "images/s"),
)
TABLE2 = {
    "Vanilla": "none/plain",
    "CutMix": "plain",
    "Puzzle-Mix": "puzzlemix/plain",
    "SaliencyMix": "saliencymix/plain",
    "Attentive-CutMix": "attentive/plain",
    "TransMix": "transmix",
    "CutMix + TL-Align": "aligned",
}
"""The rows of the paper's Table 2 and their methods."""
METHODS = (
    *("plain", "none/plain", "aligned", "aligned:residual=norm", "transmix"),
    "aligned:residual=norm,values=deviation",
)
"""The methods of the comparison in RESULTS.md."""


@dataclass(frozen=True)
class Settings:
    """Settings of the command line; differences are relative to the first method."""

    architectures: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    jobs: int
    output: Path
    figures: Path
    weights: bool
    markdown: Path | None
    recipe: Recipe
    names: Mapping[Method, str]

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that the finished ones are balanced at any time."""
        recipes = [replace(self.recipe, seed=seed) for seed in self.seeds]
        return [Run(architecture, method, recipe) for recipe in recipes for architecture, method in self.pairs]

    @property
    def pairs(self) -> list[tuple[str, Method]]:
        """Architectures and methods of the table: TransMix only for architectures with attention."""
        pairs = [(architecture, method) for architecture in self.architectures for method in self.methods]
        return [(name, method) for name, method in pairs if method.target != "transmix" or name in ATTENTION]


def train(runs: Sequence[Run], folder: Path, jobs: int) -> Generator[Run, None, None]:
    """Train runs in separate processes with one thread each; yields each run when it is finished.

    The first failure or interrupt stops the other runs and is raised; finished runs are kept.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch may hang
    with ProcessPoolExecutor(jobs, context, _start_process) as pool:
        running = {pool.submit(execute, run, folder): run for run in runs}
        try:
            for done in as_completed(running):
                _raise_failure(done, running[done])
                yield running[done]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_process() -> None:
    """Use one thread in each process. An interrupt ends it without a message, which the parent process prints."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _raise_failure(done: Future[None], run: Run) -> None:
    try:
        done.result()
    except Exception as error:
        raise RuntimeError(f"{run} failed: {type(error).__name__}: {error}; finished runs are kept") from error


def remaining(settings: Settings) -> list[Run]:
    """The runs to train: those without figures, and with --weights those whose weights are not in the folder.

    Figures of runs that are finished in the folder only are added to the file.
    """
    known = read_figures(settings.figures)
    left = [run for run in settings.runs if run not in known or settings.weights]
    done = [run for run in left if finished(run, settings.output) is not None]
    for run in done:
        record(run, settings)
    return [run for run in left if run not in done]


def record(run: Run, settings: Settings) -> None:
    """Add the figures of a finished run to the file, unless it has figures of this run."""
    outcome = finished(run, settings.output)
    if outcome is not None and run not in read_figures(settings.figures):
        add_figures(settings.figures, run, outcome)


def outcomes(settings: Settings) -> dict[tuple[str, Method], dict[int, Result | str]]:
    """What is known of the runs, by architecture and method, and by seed."""
    known = read_figures(settings.figures)
    outcomes_of: dict[tuple[str, Method], dict[int, Result | str]] = {pair: {} for pair in settings.pairs}
    for run in settings.runs:
        if run in known:
            outcomes_of[run.architecture, run.method][run.recipe.seed] = known[run]
    return outcomes_of


def accuracies(results: Mapping[int, Result | str]) -> dict[int, float]:
    """Accuracy in percent, by seed."""
    return {seed: 100 * result.accuracy for seed, result in results.items() if isinstance(result, Result)}


def rows(settings: Settings) -> list[tuple[str, ...]]:
    """The table of finished runs: a row for each architecture and method."""
    by_run, base = outcomes(settings), settings.methods[0]
    return [
        (
            name,
            settings.names.get(method, str(method)),
            *_figures(results, by_run.get((name, base), {}) if method != base else {}),
            *_costs(Run(name, method, settings.recipe), results),
        )
        for (name, method), results in by_run.items()
    ]


def _costs(run: Run, results: Mapping[int, Result | str]) -> tuple[str, str]:
    """Parameters of a run, and the median of the images per second in training."""
    speeds = [run.images / r.train_seconds for r in results.values() if isinstance(r, Result)]
    return f"{run.parameters:,}", f"{median(speeds):.0f}" if speeds else "–"


def _figures(results: Mapping[int, Result | str], baseline: Mapping[int, Result | str]) -> tuple[str, ...]:
    """Number of runs and figures of a row: percent, and the comparison with a baseline in percentage points."""
    if note := next((result for result in results.values() if isinstance(result, str)), ""):
        return ("–", note, "–", "–", "–", "–")
    percent, against = accuracies(results), accuracies(baseline)
    if not percent:
        return ("0", "–", "–", "–", "–", "–")
    spread = f" ± {stdev(percent.values()):.1f}" if len(percent) > 1 else ""
    gap = fmean(result.lambda_gap for result in results.values() if isinstance(result, Result))
    accuracy = f"{fmean(percent.values()):.1f}{spread}"
    return (str(len(percent)), accuracy, *_compared(percent, against), f"{gap:.3f}")


def _compared(percent: Mapping[int, float], against: Mapping[int, float]) -> tuple[str, str, str]:
    """Over the seeds that both have: mean and interval of the paired difference, seeds won, and the sign test."""
    common = percent.keys() & against.keys()
    if not common:
        return ("–", "–", "–")
    paired, sign = paired_difference(percent, against), sign_test(percent, against)
    interval = f"({paired.low:+.1f} to {paired.high:+.1f})" if isfinite(paired.low) else "(one run)"
    return f"{paired.mean:+.1f} {interval}", f"{sign.won} of {len(common)}", f"{sign.p:.2g}"


def render(settings: Settings) -> Table:
    """The table for a terminal."""
    table = Table(title=_title(settings))
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
    before = ""
    for row in rows(settings):
        if before and row[0] != before:
            table.add_section()
        table.add_row(*row)
        before = row[0]
    return table


def markdown(settings: Settings) -> str:
    """The table as Markdown."""
    aligns = [":--" if place < 2 else "--:" for place in range(len(COLUMNS))]
    lines = [COLUMNS, aligns, *rows(settings)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _title(settings: Settings) -> str:
    recipe = settings.recipe
    budget = f"{recipe.epochs} epochs of {recipe.train} digits in batches of {recipe.batch_size}"
    return f"{budget}; difference from {settings.methods[0]} in points, seed by seed"


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = list(ARCHITECTURES)
    add("--architectures", nargs="+", choices=names, default=names, help="architectures to train (default: all four)")
    add("--methods", nargs="+", type=read_method, default=[Method.parse(text) for text in METHODS],
        metavar="METHOD", help="targets of mixed pictures: plain (the area), transmix, aligned, or "
        "aligned:FIELD=VALUE[,…] for another tlfx.Policy, layers=1+3, scale=64 or blend=0.5; after MIXER/ for another "
        f"mixer: {', '.join(MIXERS)}. "
        f"Differences are relative to the first (default: {' '.join(METHODS)})")  # fmt: skip
    add("--table", type=int, choices=[2], help="the rows of the paper's Table 2 by their names, instead of --methods")
    add("--seeds", type=int, default=12, help="number of runs of each architecture and method (default: %(default)s)")
    add("--first-seed", type=int, default=0, help="lowest of their seeds (default: %(default)s)")
    add("--jobs", type=int, default=1, help="processes, each on one thread (default: %(default)s)")
    add("--figures", type=Path, default=FIGURES, help="file of the figures of finished runs, which are not trained "
        "again (default: examples/results/accuracy.csv)")  # fmt: skip
    add("--output", type=Path, default=Path("runs/compare"), help="folder of the weights (default: %(default)s)")
    add("--weights", action="store_true", help="also train runs with figures but without weights in --output")
    add("--markdown", type=Path, help="also write the table to this file")
    add_recipe(parser, epochs=100, train=500, test=4500, clip=1.0, rounds=2, device="cpu")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error(f"--seeds {options.seeds} --jobs {options.jobs}: expected at least 1 of each")
    seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
    recipe = read_recipe(parser, options, options.first_seed)
    titles = {Method.parse(text): name for name, text in TABLE2.items()} if options.table else {}
    chosen = list(titles) or options.methods
    methods, architectures = (tuple(dict.fromkeys(given)) for given in (chosen, options.architectures))
    files = (options.output, options.figures, options.weights, options.markdown)
    return Settings(architectures, methods, seeds, options.jobs, *files, recipe, titles)


def main() -> None:
    """Train the runs that are not finished, and print the table."""
    settings, console = parse(), Console(width=max(120, Console().width))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes are ended too
    try:
        left = remaining(settings)
        with closing(train(left, settings.output, settings.jobs)) as runs:  # an interrupt here stops the processes too
            for run in track(runs, "training", total=len(left), console=console, disable=not left):
                record(run, settings)
                console.print(f"{datetime.now():%H:%M:%S} {run}", highlight=False)
    except SettingsError as error:
        raise SystemExit(f"compare.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; finished runs are kept, and the same command trains the others") from None
    console.print(render(settings))
    if settings.markdown:
        settings.markdown.write_text(markdown(settings))


if __name__ == "__main__":
    main()
