"""Pictures of label maps: layer by layer, and as in the paper's figures 5 to 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from tlfx.analysis.pairs import Pairs
from tlfx.analysis.plotting import ANIMATION, FIRST, SECOND, animate, figure, save, shares
from tlfx.analysis.probe import Reading
from tlfx.analysis.similarity import similarity_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "animate_label_maps",
    "draw_embeddings",
    "draw_label_maps",
    "draw_mixtures",
    "draw_similarities",
    "write_label_maps",
]

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


def write_label_maps(
    path: str | Path, title: str, pair: Pairs, readings: Sequence[Reading], share: float, small: bool = False
) -> None:
    """Write label maps to a file: a GIF is their animation, any other form the picture of :func:`draw_label_maps`.

    ``small`` is that of :func:`tlfx.analysis.plotting.save`; the other arguments are those of :func:`draw_label_maps`.
    """
    if Path(path).suffix.lower() == ANIMATION:
        animate(animate_label_maps(title, pair, readings, share), path)
    else:
        save(draw_label_maps(title, pair, readings, share), path, small)


def animate_label_maps(title: str, pair: Pairs, readings: Sequence[Reading], share: float) -> list[Figure]:
    """The same as the frames of an animation: the initial label map, then a frame for each layer.

    Each frame has both images, the mixture, and the label map over the mixture; its title has λ, the label that the
    classifier would read there, and at last the one that reaches it. Arguments are those of :func:`draw_label_maps`.
    """
    area = float(pair.area[0])
    frames = [_frame_of(f"{title}, input: λ by area {area:.2f}", pair, pair.mask[0, 0])]
    for reading in readings:
        read = f"{title}, {reading.layer.path}: λ {float(reading.share[0, 0]):.2f}"
        frames.append(_frame_of(read, pair, reading.map[0, :, :, 0]))
    frames.append(
        _frame_of(f"{title}, output: λ by area {area:.2f}, aligned {share:.2f}", pair, readings[-1].map[0, ..., 0])
    )
    return frames


def _frame_of(title: str, pair: Pairs, labels: Tensor) -> Figure:
    made = figure(SIDE * 4 + 0.9, SIDE + 2 * TITLE)
    from matplotlib.cm import ScalarMappable

    axes = made.subplots(1, 4)
    _show_inputs(axes, pair)
    height, width = pair.mixed.shape[-2:]
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes[3].imshow(_pixels(pair.mixed[0]).mean(-1), cmap="gray", vmin=0, vmax=1)
    axes[3].imshow(labels.numpy(), cmap=shares(), vmin=0, vmax=1, alpha=0.7, extent=whole, aspect="equal")
    _frame(axes[3], "#555555")
    axes[3].set_title("labels", fontsize=8)
    bar = made.colorbar(ScalarMappable(cmap=shares()), ax=axes, shrink=0.8, aspect=20, pad=0.01, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["second\nimage", "0.5", "first\nimage"], fontsize=8)
    made.suptitle(title, fontsize=11)
    return made


def _draw_inputs(axes: Sequence[Axes], pair: Pairs) -> Any:
    """Both images with frames in their colours, the mixture, and its initial label map, whose artist is returned."""
    _show_inputs(axes, pair)
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


def draw_embeddings(rows: Sequence[tuple[str, Pairs, Reading, Reading]]) -> Figure:
    """Draw a row for each pair: both images, the mixture, and the label embedding before and after alignment.

    As in figures 5 and 8, the original embedding has a label for each token of the first layer, the aligned one for
    each token after the last layer. Red is the first image, blue the second.

    Args:
        rows: title, one pair, and its readings in the first and the last layer.
    """
    made = figure(SIDE * 5, (SIDE + TITLE) * len(rows))
    axes = made.subplots(len(rows), 5, squeeze=False)
    for line, (title, pair, first, last) in zip(axes, rows, strict=True):
        _show_inputs(line, pair)
        original = F.adaptive_avg_pool2d(pair.mask, first.layer.size)[0, 0]
        for ax, labels, name in ((line[3], original, "original"), (line[4], last.map[0, ..., 0], "aligned")):
            ax.imshow(labels.numpy(), cmap=shares(), vmin=0, vmax=1)
            height, width = labels.shape
            _frame(ax, "#555555")
            ax.set_title(f"{name}, {height}×{width}", fontsize=8)
        line[0].set_ylabel(title if len(title) <= 24 else f"{title[:23]}…", fontsize=7)
    return made


def draw_mixtures(mixtures: Mapping[str, Pairs]) -> Figure:
    """Draw two images and, side by side, their mixtures by several mixers (figure 7).

    ``mixtures`` maps the name of each mixer to one pair, with the same two images in all.
    """
    made = figure(SIDE * (2 + len(mixtures)), SIDE + TITLE)
    axes = made.subplots(1, 2 + len(mixtures), squeeze=False)[0]
    [pair, *_] = mixtures.values()
    _show_inputs(axes[:2], pair)
    for ax, (name, mixture) in zip(axes[2:], mixtures.items(), strict=True):
        ax.imshow(_pixels(mixture.mixed[0]))
        _frame(ax, "#555555")
        ax.set_title(f"{name}, λ {float(mixture.area[0]):.2f}", fontsize=8)
    return made


def draw_similarities(title: str, pair: Pairs, reading: Reading) -> Figure:
    """Draw the cosine similarities of a mixed token to all tokens of both images, whose maxima give eq. 13 (figure 6).

    Args:
        title: title of the picture, such as the name of the model.
        pair: one pair of images.
        reading: one layer, for the mixture, the first and the second image, in a batch of 3. The mixed token is the
            first that the classifier reads: the class token if there is one.
    """
    mixed = reading.read_tokens[0, :1]
    share = float(similarity_share(mixed, *reading.tokens[1:])[0])
    cosines = F.cosine_similarity(mixed, reading.tokens[1:], dim=-1)
    made = figure(SIDE * 5 + 0.5, SIDE + 2 * TITLE)
    axes = made.subplots(1, 5)
    _show_inputs(axes, pair)
    low, high = float(cosines.min()), float(cosines.max())
    for ax, values, name in zip(axes[3:], cosines, ("first", "second"), strict=True):
        shown = ax.imshow(values[reading.layer.grid].numpy(), cmap="viridis", vmin=low, vmax=high)
        _frame(ax, "#555555")
        ax.set_title(f"to the {name} image\nmaximum {float(values.max()):.3f}", fontsize=8)
    made.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    token = "class token" if reading.layer.has_class_token else "first token"
    made.suptitle(f"{title}, {reading.layer.path}: cosine similarity of the {token}, λ = {share:.3f}", fontsize=9)
    return made


def _show_inputs(axes: Sequence[Axes], pair: Pairs) -> None:
    """As many as there are axes of: first image, second image, mixture."""
    inputs = (
        (pair.first, "first image", FIRST),
        (pair.second, "second image", SECOND),
        (pair.mixed, "mixed", "#555555"),
    )
    for ax, (image, name, color) in zip(axes, inputs, strict=False):
        ax.imshow(_pixels(image[0]))
        _frame(ax, color)
        ax.set_title(name, fontsize=8, color=color)
