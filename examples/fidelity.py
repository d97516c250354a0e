"""Compare aligned labels with similarity and causal measures, on trained models and for all label policies.

    python examples/compare.py --methods plain --seeds 5 --weights   # first: trains four architectures
    python examples/fidelity.py                                      # measures all runs whose weights are there
    python examples/fidelity.py --architectures vit --csv vit.csv --markdown vit.md

Models of one seed are given the same test pictures, mixed in the same way, in pairs of two classes. Figures are means
over seeds ± half of a 95 % t-interval. help(tlfx.analysis.fidelity) defines what is measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from architectures import ARCHITECTURES, build
from data import load_digits
from experiment import Result, Run, finished
from methods import Method, read_method
from paired import paired_difference
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from training import SIZE, Recipe

from tlfx import Policy
from tlfx.analysis import Fidelity, fidelity
from tlfx.analysis.label_fidelity import POLICIES
from tlfx.errors import InputError
from tlfx.policy import PAPER, parse_policy

STATISTICS = {"correlation": True, "partial": True, "rmse": False}
"""Fields of tlfx.analysis.Agreement in the tables, and whether higher is better."""
TITLES = {"correlation": "Correlation", "partial": "Partial correlation given the area", "rmse": "RMSE"}
LEGEND = "↑ better, ↓ worse than the paper's rules: the 95 % interval of the paired difference over seeds excludes 0"

Found = Mapping[str, Mapping[int, Fidelity]]
"""Results by architecture and seed."""


@dataclass(frozen=True)
class Settings:
    """Settings of the command line."""

    architectures: tuple[str, ...]
    method: Method
    runs: Path
    policies: tuple[Policy, ...]
    batch_size: int
    markdown: Path | None
    csv: Path | None


def find_runs(settings: Settings) -> list[tuple[Run, Result]]:
    """Finished runs, by architecture and seed. Exits with a message if there are none, or if their recipes differ."""
    runs = [run for file in settings.runs.glob("*/*/*.json") if (run := _recorded(file)) is not None]
    chosen = [r for r in runs if r.architecture in settings.architectures and r.method == settings.method]
    done = [(run, result) for run in chosen if isinstance(result := finished(run, settings.runs), Result)]
    if not done:
        raise SystemExit(f"fidelity.py: {settings.runs} holds no finished run; train some with {_command(settings)}")
    recipes = {replace(run.recipe, seed=0) for run, _ in done}
    if len(recipes) > 1:
        raise SystemExit(
            f"fidelity.py: {settings.runs} holds runs of {len(recipes)} recipes, whose figures cannot be averaged: "
            "pass --architectures of one recipe, or another --runs"
        )
    return sorted(done, key=lambda d: (settings.architectures.index(d[0].architecture), d[0].recipe.seed))


def _recorded(file: Path) -> Run | None:
    """The run of a file of figures; None if it was interrupted, so that compare.py will train it again."""
    try:
        record = json.loads(file.read_text())
        return Run(record["architecture"], Method.parse(record["method"]), Recipe(**record["recipe"]))
    except (ValueError, KeyError, TypeError):
        return None


def _command(settings: Settings) -> str:
    """The command that trains the requested runs."""
    names = " ".join(settings.architectures)
    command = f"python examples/compare.py --methods {settings.method} --architectures {names}"
    return f"{command} --output {settings.runs} --weights"


def measure(run: Run, settings: Settings) -> Fidelity:
    """Fidelity of one trained model on the test pictures; its seed determines backgrounds and pairs."""
    recipe = run.recipe
    model = build(run.architecture, recipe.seed)
    model.load_state_dict(torch.load(run.file(settings.runs).with_suffix(".pt"), map_location="cpu"))
    _, test = load_digits(recipe.train, recipe.test, size=SIZE)
    np.random.seed(recipe.seed)  # the mixer draws from numpy
    size = min(settings.batch_size, recipe.test // 2 * 2)
    return fidelity(model, test.batches(size, recipe.seed, shuffle=True), policies=settings.policies)


def summary(runs: Sequence[tuple[Run, Result]], studies: Found) -> list[str]:
    """A line about each architecture: seeds, accuracy and number of pairs."""
    lines = []
    for name, by_seed in studies.items():
        right = fmean(result.accuracy for run, result in runs if run.architecture == name)
        pairs = [len(study.shares[PAPER]) for study in by_seed.values()]
        lines.append(f"{name}: {len(by_seed)} seeds, {100 * right:.1f} % right, at least {min(pairs)} mixed pairs each")
    return lines


def rows(studies: Found, statistic: str) -> list[tuple[str, ...]]:
    """A row for each architecture and rule, with a figure for each reference."""
    return [
        (name, rule, *_cells(by_seed, rule, statistic))
        for name, by_seed in studies.items()
        for rule in _any(by_seed).shares
    ]


def _cells(by_seed: Mapping[int, Fidelity], rule: str, statistic: str) -> Iterator[str]:
    references = _any(by_seed).references
    same = {study.same_as(rule) for study in by_seed.values()}
    if len(same) == 1 and None not in same:
        yield from [f"as {same.pop()}"] * len(references)
        return
    for reference in references:
        own, paper = (_figures(by_seed, reference, name, statistic) for name in (rule, PAPER))
        undefined = any(math.isnan(x) for x in own.values())
        yield "–" if undefined else f"{_mean(own)}{_mark(own, paper, STATISTICS[statistic])}"


def _any(by_seed: Mapping[int, Fidelity]) -> Fidelity:
    return next(iter(by_seed.values()))


def _figures(by_seed: Mapping[int, Fidelity], reference: str, rule: str, statistic: str) -> dict[int, float]:
    """A statistic by seed."""
    return {seed: getattr(study.agreement(rule, reference), statistic) for seed, study in by_seed.items()}


def _mean(figures: Mapping[int, float]) -> str:
    """Mean ± half of its interval, as text."""
    interval = paired_difference(figures, dict.fromkeys(figures, 0.0))
    half = interval.high - interval.mean
    return f"{interval.mean:.3f} ± {half:.3f}" if math.isfinite(half) else f"{interval.mean:.3f}"


def _mark(own: Mapping[int, float], paper: Mapping[int, float], more_is_better: bool) -> str:
    """An arrow if the interval of the paired difference from the paper's rules excludes 0."""
    if own == paper:
        return ""
    difference = paired_difference(own, paper)
    if difference.low <= 0 <= difference.high:
        return ""
    return " ↑" if (difference.mean > 0) == more_is_better else " ↓"


def columns(studies: Found) -> tuple[str, ...]:
    """Names of the columns of :func:`rows`."""
    return ("model", "rule", *_any(next(iter(studies.values()))).references)


def render(studies: Found, statistic: str) -> Table:
    """A statistic as a table for a terminal."""
    table = Table(title=TITLES[statistic], title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns(studies)):
        table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
    before = ""
    for name, *figures in rows(studies, statistic):
        if before and name != before:
            table.add_section()
        table.add_row("" if name == before else name, *figures)
        before = name
    return table


def markdown(lines: Sequence[str], studies: Found) -> str:
    """The summary and all tables as Markdown."""
    head = columns(studies)
    aligns = [":--" if place < 2 else "--:" for place in range(len(head))]
    parts = ["\n".join(f"- {line}" for line in lines)]
    for statistic, title in TITLES.items():
        parts += [f"{title}:", "\n".join(f"| {' | '.join(x)} |" for x in (head, aligns, *rows(studies, statistic)))]
    return "\n\n".join([*parts, f"{LEGEND}."]) + "\n"


def as_csv(of_models: Found) -> str:
    """All figures of all seeds: the lines of tlfx.analysis.Fidelity, after columns for architecture and seed."""
    studies = [
        (name, seed, study.csv().splitlines()) for name, each in of_models.items() for seed, study in each.items()
    ]
    _, _, (head, *_) = studies[0]
    lines = [f"{name},{seed},{line}" for name, seed, (_, *body) in studies for line in body]
    return "\n".join([f"architecture,seed,{head}", *lines]) + "\n"


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = list(ARCHITECTURES)
    add("--runs", type=Path, default=Path("runs/compare"), help="runs of compare.py (default: %(default)s)")
    add("--architectures", nargs="+", choices=names, default=names, help="architectures to measure (default: all four)")
    add("--method", type=read_method, default=Method.parse("plain"), help="method of their training (default: plain)")
    add("--policies", nargs="+", type=_read_policy, default=list(POLICIES), metavar="FIELD=VALUE[,…]",
        help="label policies to compare with the paper's, such as residual=norm,values=deviation (default: every "
        "policy that changes one rule, and two that weight everything by values)")  # fmt: skip
    add("--batch-size", type=int, default=100, help="test pictures at a time, an even number (default: %(default)s)")
    add("--markdown", type=Path, help="also write the tables to this file")
    add("--csv", type=Path, help="write the figures of every seed to this file")
    options = parser.parse_args(arguments)
    if options.batch_size < 2 or options.batch_size % 2:
        parser.error(f"--batch-size {options.batch_size}: expected an even number, because pictures are mixed in pairs")
    for file in (options.markdown, options.csv):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"there is no folder {str(file.parent)!r} to write {file.name} into; create it first")
    chosen = tuple(dict.fromkeys(options.architectures))
    policies = tuple(dict.fromkeys([Policy(), *options.policies]))
    return Settings(**{**vars(options), "architectures": chosen, "policies": policies})


def _read_policy(text: str) -> Policy:
    try:
        return parse_policy(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    """Measure all finished runs, and print the tables."""
    settings, console = parse(), Console()
    torch.set_num_threads(1)
    runs = find_runs(settings)
    studies: dict[str, dict[int, Fidelity]] = {}
    for run, _ in track(runs, "measuring", console=console):
        studies.setdefault(run.architecture, {})[run.recipe.seed] = measure(run, settings)
    lines = summary(runs, studies)
    console.print(*lines, sep="\n", highlight=False)
    for statistic in STATISTICS:
        console.print(render(studies, statistic))
    console.print(LEGEND)
    if settings.markdown:
        settings.markdown.write_text(markdown(lines, studies))
    if settings.csv:
        settings.csv.write_text(as_csv(studies))


if __name__ == "__main__":
    main()
