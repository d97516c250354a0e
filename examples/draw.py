"""Pictures of trained models: where the labels of a mixed scene go, and differences of accuracy with their intervals.

    python examples/draw.py accuracy -o docs/accuracy.png    # of the finished runs of compare.py
    python examples/draw.py labels --weights runs/compare/vit/aligned/0.pt -o docs/digits.png    # or docs/digits.gif

The scene of `labels` is half one image with its digit and half another without: both digits are at the left, and the
mixture has the left half of the first image and the right half of the second. Of 100 such pairs of test digits, the one
whose λ at the output is the median is drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import compare
import torch
from architectures import ARCHITECTURES, build
from data import GRID, MEAN, STD, load_digits
from paired import paired_difference

from tlfx.analysis.pairs import Pairs
from tlfx.analysis.pictures import write_label_maps
from tlfx.analysis.plotting import ANIMATION, COLORS, FORMATS, check_file, figure, save
from tlfx.analysis.probe import Probe
from tlfx.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIRS = 100
LEAST = 3
"""Number of seeds of what is drawn; the interval of two is wider than any difference."""


def scenes(train: int, count: int) -> tuple[torch.Tensor, Pairs]:
    """Mixed pictures (count, 3, h, w) as the network reads them, and their pairs in [0, 1]; all λ by area are ½."""
    _, test = load_digits(train, 2 * count)
    draw, slack = torch.Generator().manual_seed(0), test.size - test.digits.shape[-1]
    photo = torch.randint(len(test.photos), (2 * count,), generator=draw)
    corners = torch.randint(test.photos.shape[-1] - test.size, (2, 2 * count), generator=draw)
    places = torch.stack([torch.full((2 * count,), slack // GRID // 2 * GRID), torch.full((2 * count,), slack)])
    first, second = test.render(torch.arange(2 * count), photo, corners, places).chunk(2)
    mask = torch.zeros(count, 1, test.size, test.size)
    mask[..., : test.size // 2] = 1
    mixed = torch.where(mask.bool(), first, second)
    one, other, both = ((STD * images + MEAN).clamp(0, 1) for images in (first, second, mixed))
    return mixed, Pairs(one, other, both, mask)


def labels(architecture: str, weights: Path, output: Path) -> None:
    """Draw the label maps of the median scene, layer by layer; as an animation into a GIF."""
    model = build(architecture, 0)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    mixed, pairs = scenes(compare.parse([]).recipe.train, PAIRS)
    probe = Probe(model, tuple(mixed.shape[1:]), attention=False)
    shares = [float(probe(mixed[i : i + 1], pairs[i].mask)[1].label[0, 0]) for i in range(PAIRS)]
    median = sorted(range(PAIRS), key=shares.__getitem__)[PAIRS // 2]
    readings, _ = probe(mixed[median : median + 1], pairs[median].mask)
    write_label_maps(output, architecture, pairs[median], readings, shares[median], small=True)


def accuracy() -> Figure:
    """Paired differences of accuracy from plain CutMix of each seed, their means and intervals."""
    settings = compare.parse([])
    percent = {pair: compare.accuracies(results) for pair, results in compare.outcomes(settings).items()}
    base = settings.methods[0]
    names = [name for name in settings.architectures if len(percent[name, base]) >= LEAST]
    if not names:
        raise InputError(f"{settings.figures} has no architecture with {LEAST} seeds")
    drawn = figure(7.0, 0.6 + 1.4 * len(names))
    axes = drawn.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names, strict=True):
        others = [(method, percent[name, method]) for arch, method in settings.pairs if arch == name and method != base]
        _draw_differences(ax, {str(method): own for method, own in others if len(own) >= LEAST}, percent[name, base])
        ax.set_title(f"{name}, {len(percent[name, base])} seeds", fontsize=9, loc="left")
    axes[-1].set_xlabel("accuracy − accuracy of plain CutMix, percentage points")
    return drawn


def _draw_differences(ax: Axes, methods: dict[str, dict[int, float]], plain: dict[int, float]) -> None:
    """A row for each method: a dot for each seed, and the mean with its 95 % interval."""
    for row, own in enumerate(methods.values()):
        seeds = sorted(own.keys() & plain.keys())
        ax.plot([own[s] - plain[s] for s in seeds], [row] * len(seeds), "o", color=COLORS["black"], alpha=0.25, ms=4)
        paired = paired_difference(own, plain)
        ax.plot([paired.low, paired.high], [row, row], color=COLORS["red"], linewidth=2)
        ax.plot(paired.mean, row, "D", color=COLORS["red"], ms=6)
    ax.axvline(0, color=COLORS["black"], linewidth=0.8)
    ax.set_yticks(range(len(methods)), ["no mixing" if name == "none/plain" else name for name in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)


def main() -> None:
    """Draw a picture into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("picture", choices=["labels", "accuracy"], help="what to draw")
    add("--architecture", choices=list(ARCHITECTURES), default="vit", help="of the weights (default: %(default)s)")
    add("--weights", type=Path, default=Path("runs/compare/vit/aligned/0.pt"), help="file (default: %(default)s)")
    add("-o", "--output", type=Path, required=True, help="PNG, PDF or SVG; of labels, also GIF")
    options = parser.parse_args()
    try:
        if options.picture == "labels":
            check_file(options.output, "--output", (*FORMATS, ANIMATION))
            labels(options.architecture, options.weights, options.output)
        else:
            check_file(options.output, "--output")
            save(accuracy(), options.output, small=True)
    except (InputError, FileNotFoundError) as error:
        raise SystemExit(f"draw.py: {error}") from None


if __name__ == "__main__":
    main()
