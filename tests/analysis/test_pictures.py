"""What pictures show are the numbers they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from tlfx.analysis.curves import draw_bars, draw_fluctuation
from tlfx.analysis.fluctuation import INPUT, OUTPUT, Figures, Spread
from tlfx.analysis.layers import Layer
from tlfx.analysis.pairs import Pairs, mixed
from tlfx.analysis.pictures import draw_label_maps
from tlfx.analysis.plotting import COLORS, FIRST, SECOND, check_file, save, shares
from tlfx.analysis.probe import Reading
from tlfx.errors import InputError


def pair() -> Pairs:
    """Two images of one colour each, mixed."""
    return mixed(torch.full((3, 32, 32), 0.25), torch.full((3, 32, 32), 0.75), seed=2)


def reading(path: str, side: int, others: int = 0) -> Reading:
    """A layer with random labels, tokens in a random order."""
    chance = torch.Generator().manual_seed(side)
    grid = others + torch.randperm(side * side, generator=chance).view(side, side)
    nowhere = torch.arange(others)
    layer = Layer(path, torch.arange(others + side * side), grid, nowhere, nowhere if others else grid.flatten())
    return Reading(layer, torch.rand(1, others + side * side, 1, generator=chance), torch.zeros(1, 1, 1), None)


def maps_of(drawn: Figure) -> list[np.ndarray]:
    """The label maps of a figure, without photos and overlays."""
    images = [ax.images[0] for ax in drawn.axes if ax.images]
    return [np.asarray(i.get_array()) for i in images if i.get_cmap().name == "shares"]


def test_maps_are_those_of_the_layers() -> None:
    one, readings = pair(), [reading("blocks.0", 8, others=1), reading("stages.1", 4), *(reading("x", 2),) * 5]
    drawn = draw_label_maps("model", one, readings, 0.25)
    initial, *maps = maps_of(drawn)
    assert np.array_equal(initial, one.mask[0, 0].numpy())
    assert len(maps) == 7
    for shown, r in zip(maps, readings, strict=True):
        assert np.array_equal(shown, r.labels[0, :, 0][r.layer.grid].numpy())
    titles = [ax.get_title() for ax in drawn.axes if ax.get_title()]
    assert titles[:4] == ["first image", "second image", "mixed", "initial label map"]
    assert titles[4] == f"blocks.0\n8×8, class token λ {float(readings[0].labels[0, 0, 0]):.3f}"
    assert titles[5] == f"stages.1\n4×4, mean λ {float(readings[1].labels.mean()):.3f}"
    assert drawn.get_suptitle() == f"model:  λ by area {float(one.area[0]):.3f},  λ that reaches the output 0.250"


def test_all_maps_have_one_scale_from_blue_to_red() -> None:
    drawn = draw_label_maps("model", pair(), [reading("blocks.0", 4)], 0.5)
    scaled = [i for ax in drawn.axes for i in ax.images if i.get_cmap().name == "shares"]
    assert len(scaled) == 3
    assert {i.get_clim() for i in scaled} == {(0, 1)}
    ends = [tuple(round(255 * c) for c in shares()(x)[:3]) for x in (0.0, 1.0)]
    assert ends == [tuple(bytes.fromhex(color[1:])) for color in (SECOND, FIRST)]


SEEN_WITHOUT_RED_GREEN = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
"""Linear RGB as a protanope sees it (Machado, Oliveira and Fernandes 2009, severity 1)."""


@pytest.mark.parametrize(
    ("one", "other"), [(FIRST, SECOND), *((COLORS["red"], COLORS[c]) for c in ("blue", "green", "black"))]
)
def test_colours_differ_for_who_does_not_tell_red_from_green(one: str, other: str) -> None:
    a, b = ((np.frombuffer(bytes.fromhex(c[1:]), np.uint8) / 255) ** 2.2 for c in (one, other))
    seen = [(SEEN_WITHOUT_RED_GREEN @ x).clip(0, 1) ** (1 / 2.2) for x in (a, b)]
    assert np.abs(seen[0] - seen[1]).max() > 0.25


def test_a_picture_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.png"
    save(draw_label_maps("model", pair(), [reading("blocks.0", 4)] * 7, 0.5), file)
    with Image.open(file) as image:
        assert image.format == "PNG"
        width, height = image.size
    assert 1000 < width < 1300
    assert 900 < height < 1200
    assert list(tmp_path.iterdir()) == [file]


def test_a_small_picture(tmp_path: Path) -> None:
    """256 colours, none of them far from what it stands for."""
    drawn = draw_label_maps("model", pair(), [reading("blocks.0", 4)], 0.5)
    save(drawn, tmp_path / "full.png")
    save(drawn, tmp_path / "small.png", small=True)
    with Image.open(tmp_path / "full.png") as full, Image.open(tmp_path / "small.png") as small:
        assert small.mode == "P"
        pixels = [np.asarray(x.convert("RGB"), dtype=np.float64) for x in (full, small)]
    assert np.abs(pixels[0] - pixels[1]).mean() < 3
    assert (tmp_path / "small.png").stat().st_size < (tmp_path / "full.png").stat().st_size


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--plot 'a\.gif': expected a file that ends in \.png, \.pdf, \.svg"):
        check_file("a.gif", "--plot")
    with pytest.raises(InputError, match=r"--csv '.*/none/a\.csv' cannot be written: '.*/none' does not exist; create"):
        check_file(tmp_path / "none" / "a.csv", "--csv", (".csv",))
    (tmp_path / "d.png").mkdir()
    with pytest.raises(InputError, match=r"--output '.*d\.png' cannot be written"):
        check_file(tmp_path / "d.png", "--output")


def figures(name: str) -> list[Figures]:
    """Two blocks and two pairs, the second of which is not drawn."""
    spread = Spread(0.0, 0.5, 0.9, 1.25, 3.0, 0.1)
    transmix = 0.3 if name == "vit" else None
    first = [
        Figures(name, 0, 0, INPUT, 4, 4, 0.4, 0.4, fixed=0.5, moved=0.0, presence=Spread(1, 1, 1, 1, 1, 0)),
        Figures(name, 0, 1, "blocks.0", 4, 4, 0.4, 0.6, transmix, 0.5, 0.55, 0.1, spread),
        Figures(name, 0, 2, "blocks.1", 2, 2, 0.4, 0.7, transmix, 0.25, 0.65, 0.2, replace(spread, median=0.8)),
        Figures(name, 0, 3, OUTPUT, 1, 1, 0.4, 0.7, transmix, presence=spread),
    ]
    return first + [replace(f, pair=1, aligned=0.0, area=0.0, presence=None) for f in first]


def test_curves_are_the_figures_of_the_first_pair() -> None:
    drawn = draw_fluctuation({name: figures(name) for name in ("vit", "convnet")})
    above, other_above, below, other_below = drawn.axes
    assert [ax.get_title() for ax in (above, other_above)] == ["vit", "convnet"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in below.get_lines()}
    assert lines == {
        "area (CutMix)": [[d, 0.4] for d in range(4)],
        "TransMix": [[d, 0.3] for d in (1, 2, 3)],
        "fixed tokens": [[0, 0.5], [1, 0.5], [2, 0.25]],
        "similarity (eq. 13)": [[1, 0.55], [2, 0.65]],
        "TL-Align": [[0, 0.4], [1, 0.6], [2, 0.7], [3, 0.7]],
    }
    assert "TransMix" not in [line.get_label() for line in other_below.get_lines()]
    median = next(line for line in above.get_lines() if line.get_label() == "median")
    assert median.get_xydata().tolist() == [[0, 1], [1, 0.9], [2, 0.8], [3, 0.9]]
    whole = above.collections[0].get_paths()[0].vertices[:, 1]
    assert (whole.min(), whole.max()) == (1e-3, 3.0)  # a logarithm has no zero
    assert above.get_ylim() == other_above.get_ylim()
    assert below.get_ylim() == other_below.get_ylim()


def test_curves_as_a_file(tmp_path: Path) -> None:
    save(draw_fluctuation({"vit": figures("vit")}), tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert image.size == (680, 560)
        colours = len(image.convert("RGB").getcolors(2**20))
    assert colours > 50


def test_bars_are_errors_at_the_output_in_order_of_size() -> None:
    measured = {name: figures(name) for name in ("swin_tiny_patch4", "deit_small", "deit_tiny")}
    parameters = {"swin_tiny_patch4": 28_300_000, "deit_small": 22_000_000, "deit_tiny": 5_700_000}
    [ax] = draw_bars(measured, parameters).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "deit\ntiny\n5.7 M",
        "deit\nsmall\n22 M",
        "swin\ntiny\n28.3 M",
    ]
    expected = (0.3**2 / 2) ** 0.5  # 0.4 and 0.7 in the first pair, equal in the second
    bars: list[Any] = list(ax.patches)
    assert [bar.get_height() for bar in bars] == pytest.approx([expected] * 3)
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[1] != colours[2]
