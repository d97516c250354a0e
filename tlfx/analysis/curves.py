"""Plots of token fluctuation: presence of input tokens over depth and λ by layer, a column per model (figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tlfx.analysis.fluctuation import METHODS, Figures, by_layer, rmse
from tlfx.analysis.plotting import COLORS, figure
from tlfx.analysis.presence_over_depth import FADED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_bars", "draw_fluctuation"]

WIDTH, HEIGHT = 3.4, 5.6
"""Width of a column and height of both rows, in inches."""
LOWEST = 1e-3
"""Lower limit of the logarithmic axis; smaller values are drawn here."""
LINES = {
    "area": (COLORS["black"], "--", ""),
    "transmix": (COLORS["green"], "-", "^"),
    "fixed": (COLORS["orange"], "-", "s"),
    "aligned": (COLORS["red"], "-", "o"),
    "similarity": (COLORS["blue"], ":", "D"),
}
"""Colour, line and marker of each method, distinguishable without colour."""


def draw_fluctuation(measured: Mapping[str, Sequence[Figures]]) -> Figure:
    """Draw one column per model with shared axes: above the presence of input tokens in each layer, below λ by each
    method, both for the first mixed pair.

    ``measured`` maps the name of each model to its figures from :func:`tlfx.analysis.fluctuation.fluctuation`.
    """
    made = figure(WIDTH * max(2, len(measured)), HEIGHT)
    axes = made.subplots(2, len(measured), sharex="col", sharey="row", squeeze=False)
    for place, (name, figures) in enumerate(measured.items()):
        first = [layer[0] for layer in by_layer(figures)]
        above, below = axes[0][place], axes[1][place]
        _draw_presence(above, first)
        _draw_shares(below, first)
        above.set_title(name, fontsize=9)
        below.set_xlabel("layer (0: image, last: output)", fontsize=8)
    axes[0][0].set_ylabel("presence over depth", fontsize=8)
    axes[1][0].set_ylabel("λ, share of the first image", fontsize=8)
    for ax in axes.flat:
        ax.tick_params(labelsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(color="#dddddd", linewidth=0.5)
        ax.set_axisbelow(True)
    above, below = (
        {label: handle for ax in row for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        for row in axes
    )
    made.legend(above.values(), above.keys(), fontsize=8, loc="outside upper center", ncols=len(above))
    made.legend(below.values(), below.keys(), fontsize=8, loc="outside lower center", ncols=len(below))
    return made


def _draw_presence(ax: Axes, layers: Sequence[Figures]) -> None:
    """Median, interquartile range and full range of the presence of input tokens."""
    known = [(f.depth, f.presence) for f in layers if f.presence is not None]
    depth = [d for d, _ in known]
    least, lower, median, upper, most = (
        [max(LOWEST, getattr(p, name)) for _, p in known] for name in ("least", "lower", "median", "upper", "most")
    )
    ax.fill_between(depth, least, most, color=COLORS["blue"], alpha=0.2, linewidth=0, label="all input tokens")
    ax.fill_between(depth, lower, upper, color=COLORS["blue"], alpha=0.45, linewidth=0, label="middle half")
    ax.plot(depth, median, color=COLORS["blue"], label="median")
    ax.axhline(FADED, color=COLORS["red"], linestyle="--", linewidth=1, label=f"faded below {FADED}")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")


def _draw_shares(ax: Axes, layers: Sequence[Figures]) -> None:
    """λ by each method, in the layers where it is known."""
    for method, name in METHODS.items():
        color, line, mark = LINES[method]
        known = [(f.depth, getattr(f, method)) for f in layers if getattr(f, method) is not None]
        if known:
            ax.plot(
                *zip(*known, strict=True),
                color=color,
                linestyle=line,
                marker=mark,
                markersize=3,
                linewidth=1.2,
                label=name,
            )
    ax.set_ylim(-0.02, 1.02)


def draw_bars(measured: Mapping[str, Sequence[Figures]], parameters: Mapping[str, int]) -> Figure:
    """Draw the root mean square difference of the λ of CutMix and of TL-Align at the output, as a bar for each model.

    Bars are in the order of the number of parameters, and in a colour for each family: the models whose names have the
    same beginning up to an underscore (figure 3).

    Args:
        measured: the figures of each model.
        parameters: the number of parameters of each model.
    """
    names = sorted(measured, key=lambda name: parameters[name])
    families = list(dict.fromkeys(name.partition("_")[0] for name in names))
    colors = dict(zip(families, (COLORS["blue"], COLORS["orange"], COLORS["green"], COLORS["red"]), strict=False))
    made = figure(max(4.0, 1.1 * len(names)), 3.4)
    ax = made.subplots()
    for place, name in enumerate(names):
        height = rmse(by_layer(measured[name])[-1], "area") or 0.0
        color = colors.get(name.partition("_")[0], COLORS["black"])
        ax.bar(place, height, color=color)
        ax.annotate(f"{height:.3f}", (place, height), ha="center", va="bottom", fontsize=8)
    labels = ["\n".join([*name.split("_")[:2], f"{parameters[name] / 1e6:.3g} M"]) for name in names]
    ax.set_xticks(range(len(names)), labels, fontsize=8)
    ax.set_ylabel("RMSE of λ, CutMix and TL-Align", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    return made
