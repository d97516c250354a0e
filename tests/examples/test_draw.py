"""`examples/draw.py`: the scenes whose labels it draws, and the differences of accuracy as they stand in a picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]


def test_the_second_half_of_a_scene_has_no_digit() -> None:
    from data import DIMMED
    from draw import scenes

    mixed, pairs = scenes(500, 6)
    assert mixed.shape == (6, 3, 28, 28)
    assert pairs.area.tolist() == [0.5] * 6
    assert torch.equal(pairs.mixed[..., :14], pairs.first[..., :14])
    assert torch.equal(pairs.mixed[..., 14:], pairs.second[..., 14:])
    for images in (pairs.first, pairs.second):  # ink is brighter than photos, and in the first 16 columns
        assert (images[..., :14].amax((1, 2, 3)) > 2 * DIMMED).all()
        assert images[..., 16:].max() <= DIMMED + 1e-5


def test_a_trained_model_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import draw
    from architectures import build

    weights, file = tmp_path / "mixer.pt", tmp_path / "labels.png"
    torch.save(build("mixer", 3).state_dict(), weights)
    monkeypatch.setattr(draw, "PAIRS", 3)
    options = ["labels", "--architecture", "mixer", "--weights", str(weights), "-o", str(file)]
    monkeypatch.setattr(sys, "argv", ["draw.py", *options])
    draw.main()
    assert file.read_bytes().startswith(b"\x89PNG")
    animation = tmp_path / "labels.gif"
    monkeypatch.setattr(sys, "argv", ["draw.py", *options[:-2], "-o", str(animation)])
    draw.main()
    assert animation.read_bytes().startswith(b"GIF")
    monkeypatch.setattr(sys, "argv", ["draw.py", *options[:-2], "-o", str(tmp_path / "labels.txt")])
    with pytest.raises(SystemExit, match=r"draw\.py: --output .* ends in \.png, \.pdf, \.svg, \.gif"):
        draw.main()


def test_differences_of_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of made-up figures: a dot for each seed, the mean, and Student's interval; only what has three seeds is drawn."""
    import compare
    from draw import accuracy
    from experiment import Result
    from figures import add_figures

    from tlfx.errors import InputError

    file = tmp_path / "figures.csv"
    chosen = compare.parse(["--figures", str(file), "--seeds", "3"])
    monkeypatch.setattr(compare, "parse", lambda arguments: chosen)
    with pytest.raises(InputError, match=r"figures\.csv has no architecture with 3 seeds"):
        accuracy()
    measured = {"plain": [0.70, 0.71, 0.72], "aligned": [0.72, 0.70, 0.75], "none/plain": [0.6, 0.6, 0.6]}
    for run in chosen.runs:
        if run.architecture == "vit" and str(run.method) in measured:
            add_figures(file, run, Result(measured[str(run.method)][run.recipe.seed], 0.1, 1.0, 2.0, 3.0))
    drawn = accuracy()
    [ax] = drawn.axes
    assert ax.get_title(loc="left") == "vit, 3 seeds"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no mixing", "aligned"]
    dots, interval, mean = (np.asarray(line.get_xdata(), dtype=float).tolist() for line in ax.get_lines()[3:6])
    differences = 100 * (np.array(measured["aligned"]) - measured["plain"])
    assert dots == pytest.approx(differences.tolist())
    assert mean == pytest.approx([differences.mean()])
    half = float(stats.t.ppf(0.975, 2) * stats.sem(differences))
    assert interval == pytest.approx([differences.mean() - half, differences.mean() + half])
