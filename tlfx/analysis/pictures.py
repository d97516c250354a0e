"""Label maps as a picture: two images, their mixture, and its label map layer by layer (figures 5, 7, 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tlfx.analysis.pairs import Pairs
from tlfx.analysis.plotting import FIRST, SECOND, figure, shares
from tlfx.analysis.probe import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_label_maps"]

COLUMNS = 6
"""Maximum number of layers in a row."""
SIDE, TITLE = 1.75, 0.42
"""Height of a map and of its title, in inches."""


def draw_label_maps(title: str, pair: Pairs, readings: Sequence[Reading], share: float) -> Figure:
    """Draw the inputs, the mixture and the initial label map, and below for each layer its aligned label map, alone
    and over the mixture.

    Red is the first image, blue the second, white half of each; all maps range from 0 to 1. The title of a map shows
    the module, the size of its grid and λ, the label that the classifier would read there. Class tokens are not drawn.

    Args:
        title: title of the picture, such as the name of the model.
        pair: one pair of images.
        readings: one reading per layer, for this pair.
        share: λ at the output.
    """
    columns = min(COLUMNS, max(4, len(readings)))
    lines = -(-len(readings) // columns)
    made = figure(SIDE * columns + 0.9, SIDE * (1 + 2 * lines) + TITLE * (2 + lines))
    axes = made.subplots(1 + 2 * lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    initial = _draw_inputs(axes[0], pair)
    for place, reading in enumerate(readings):
        line, column = divmod(place, columns)
        _draw_layer(axes[1 + 2 * line][column], axes[2 + 2 * line][column], pair, reading)
    bar = made.colorbar(initial, ax=axes, shrink=0.6, aspect=40, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["second\nimage", "0.25", "0.5", "0.75", "first\nimage"], fontsize=8)
    made.suptitle(f"{title}:  λ by area {float(pair.area[0]):.3f},  λ that reaches the output {share:.3f}", fontsize=11)
    return made


def _draw_inputs(axes: Sequence[Axes], pair: Pairs) -> Any:
    """Both images with frames in their colours, the mixture, and its initial label map, whose artist is returned."""
    for ax, image, name, color in (
        (axes[0], pair.first, "first image", FIRST),
        (axes[1], pair.second, "second image", SECOND),
        (axes[2], pair.mixed, "mixed", "#555555"),
    ):
        ax.imshow(_pixels(image[0]))
        _frame(ax, color)
        ax.set_title(name, fontsize=8, color=color)
    _frame(axes[3], "#555555")
    axes[3].set_title("initial label map", fontsize=8)
    return axes[3].imshow(pair.mask[0, 0].numpy(), cmap=shares(), vmin=0, vmax=1)


def _draw_layer(above: Axes, below: Axes, pair: Pairs, reading: Reading) -> None:
    """A label map, and the same map over the mixture in grey."""
    labels = reading.map[0, :, :, 0].numpy()
    height, width = pair.mixed.shape[-2:]
    rows, columns = labels.shape
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    above.imshow(labels, cmap=shares(), vmin=0, vmax=1, extent=whole, aspect="equal")
    below.imshow(_pixels(pair.mixed[0]).mean(-1), cmap="gray", vmin=0, vmax=1)
    below.imshow(labels, cmap=shares(), vmin=0, vmax=1, alpha=0.6, extent=whole, aspect="equal")
    for ax in (above, below):
        _frame(ax, "#555555")
    if max(rows, columns) <= 28:
        _grid_lines(above, np.arange(1, rows) * height / rows - 0.5, np.arange(1, columns) * width / columns - 0.5)
    name = reading.layer.path
    name = name if len(name) <= 24 else f"…{name[-23:]}"
    where = "class token" if reading.layer.has_class_token else "mean"
    above.set_title(
        f"{name}\n{rows}×{columns}, {where} λ {float(reading.share[0, 0]):.3f}",
        fontsize=7.5,
    )


def _grid_lines(ax: Axes, rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> None:
    for y in rows:
        ax.axhline(y, color="white", linewidth=0.4)
    for x in columns:
        ax.axvline(x, color="white", linewidth=0.4)


def _frame(ax: Axes, color: str) -> None:
    ax.set_axis_on()
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=color, linewidth=1.5)


def _pixels(image: Tensor) -> np.ndarray[Any, Any]:
    """An image (3, height, width) as pixels (height, width, 3)."""
    return image.permute(1, 2, 0).clamp(0, 1).numpy()
