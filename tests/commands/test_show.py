"""``tlfx show``: from a command to a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command import tlfx
from PIL import Image

from tlfx.commands.cli import main

SMALL = ("test_vit", "--kwargs", '{"num_classes": 4}')


def test_a_picture_of_shipped_photos(tmp_path: Path) -> None:
    file = tmp_path / "labels.png"
    done = tlfx("show", *SMALL, "--every-block", "--seed", "3", "-o", str(file))
    assert done.returncode == 0, done.stderr
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    assert [done.stdout.count(f"blocks.{i} ") for i in range(7)] == [1] * 6 + [0]
    assert done.stdout.count("10×10") == 6
    assert "λ by area 0.892" in done.stdout
    assert done.stderr == f"wrote {file}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["labels.png"]


def test_images_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two colours in; the mixture in the picture holds both, MixUp their mean."""
    files = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    for file, level in zip(files, (0, 255), strict=True):
        Image.fromarray(np.full((50, 70, 3), level, np.uint8)).save(file)
    out = str(tmp_path / "out.png")
    assert main(["show", *SMALL, *files, "--at", "blocks.[13]", "--at", "norm", "--mixer", "mixup", "-o", out]) == 0
    shown = capsys.readouterr().out
    area = float(shown.split("λ by area ")[1].split(",")[0])
    assert f"that reaches the output {area:.3f}" in shown  # a constant label stays what it is
    assert ("blocks.1 " in shown, "blocks.2 " in shown, "blocks.3 " in shown, "norm " in shown) == (
        True,
        False,
        True,
        True,
    )
    with Image.open(out) as image:
        levels = set(image.convert("L").tobytes())
    assert any(abs(level - 255 * (1 - area)) < 4 for level in levels)


@pytest.mark.slow
def test_weights_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Queries and keys that choose, so that the class token reads another mixture than the area."""
    model = timm.create_model("test_vit", num_classes=4)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(8)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    out = str(tmp_path / "out.svg")
    assert main(["show", *SMALL, "--weights", str(tmp_path / "w.pt"), "-o", out]) == 0
    shown = capsys.readouterr().out.split("λ by area ")[1]
    area, reached = float(shown[:5]), float(shown.split("output ")[1][:5])
    assert abs(area - reached) > 0.002
    assert Path(out).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--at", "blocks.9"],
            "no module with tokens matches 'blocks.9'; similar names are blocks.",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--at", "head"], "the tokens of head form no grid on the image", marks=pytest.mark.slow),
        (["--at", "blocks.0", "--every-block"], "--at and --every-block were both given: use only one of them"),
        (["one.png"], "1 image was given, expected two, or none for photos from scikit-image"),
        (["one.png", "two.png"], "there is no image file 'one.png'"),
        (["-o", "labels.txt"], "--output 'labels.txt': expected a file that ends in .png, .pdf, .svg"),
        (["-o", "no/such/labels.png"], "'no/such' does not exist; create it first"),
        (["--mixer", "cut"], "mixer 'cut' is unknown, expected one of cutmix, mixup, blocks, patches"),
        (["--weights", "none.pt"], "--weights: there is no file 'none.pt'"),
        (["--weights", "a", "--weights", "b"], "--weights was given 2 times, expected once"),
    ],
)
def test_what_cannot_be_drawn(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_of_other_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "test_vit", "--kwargs", '{"in_chans": 1}']) == 2
    assert "the model takes inputs of 1x160x160, expected images of three channels, 3xHxW" in capsys.readouterr().err


@pytest.mark.slow
def test_label_maps_as_arrays(tmp_path: Path) -> None:
    picture, arrays = tmp_path / "labels.png", tmp_path / "labels.npz"
    done = tlfx("show", *SMALL, "-o", str(picture), "--npz", str(arrays), "--seed", "3")
    assert done.stderr == f"wrote {picture}\nwrote {arrays}\n"
    with np.load(arrays) as maps:
        assert maps["mask"].shape == (160, 160)
        layers = {name: maps[name] for name in maps if name != "mask"}
    assert next(iter(layers)).startswith("blocks.0")
    assert all(m.shape == (10, 10) for m in layers.values())
    assert all(0 <= m.min() <= m.max() <= 1 for m in layers.values())
    done = tlfx("show", *SMALL, "-o", str(picture), "--npz", str(tmp_path / "labels.txt"))
    assert "expected a file that ends in .npz" in done.stderr


def test_an_animation_has_a_frame_for_each_layer(tmp_path: Path) -> None:
    file = tmp_path / "labels.gif"
    assert main(["show", *SMALL, "--at", "blocks.[135]", "--seed", "3", "-o", str(file)]) == 0
    with Image.open(file) as image:
        assert image.format == "GIF"
        assert image.n_frames == 5  # the input, three blocks and the output
        assert image.info["loop"] == 0
