"""Models by name: where they come from, the size of their images, and what goes wrong."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from tlfx.commands.arguments import add_model, model_from
from tlfx.errors import ModelError
from tlfx.zoo.models import load, parse_size

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Conv2d(3, width, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Sized(Net):
    default_cfg = {"input_size": (3, 32, 48)}

class nested:
    net = Net

def broken():
    raise RuntimeError("no luck")

def number():
    return 3

thing = 3
"""


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "some_models.py").write_text(SOURCE)
    (tmp_path / "bad_models.py").write_text("import math\nmath.tau / 0\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", (3, 160, 160)),
        ("test_vit.r160_in1k", (3, 160, 160)),
        ("torchvision:squeezenet1_1", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:r3d_18", (3, 16, 112, 112)),
        ("torchvision:mvit_v1_b", (3, 16, 224, 224)),
        # It goes by 224 x 224 unless it is built for more, whatever size its published weights take.
        ("torchvision:vit_h_14", (3, 224, 224)),
    ],
)
def test_own_size(name: str, size: tuple[int, ...]) -> None:
    model, images = load(name, device="meta")
    assert tuple(images.shape) == (2, *size)
    assert all(p.is_meta for p in model.parameters())


def test_sizes_from_arguments_of_the_model() -> None:
    _, images = load("test_vit", {"img_size": 96, "in_chans": 1}, device="meta")
    assert tuple(images.shape) == (2, 1, 96, 96)


@pytest.mark.parametrize(
    ("given", "size"),
    [((64,), (3, 64, 64)), ((64, 96), (3, 64, 96)), ((3, 32, 64), (3, 32, 64)), ((3, 4, 32, 64), (3, 4, 32, 64))],
)
def test_given_size(given: tuple[int, ...], size: tuple[int, ...]) -> None:
    _, images = load("test_resnet", input_size=given)
    assert tuple(images.shape) == (2, *size)


def test_given_size_of_a_video_model() -> None:
    _, images = load("torchvision:r3d_18", input_size=(64,), device="meta")
    assert tuple(images.shape) == (2, 3, 16, 64, 64)


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "test_vit"])
def test_size_that_the_model_does_not_take(name: str) -> None:
    with pytest.raises(ModelError, match=r"takes images of .* not 64x64; to build it .* '\{.(img|image)_size.: 64\}'"):
        load(name, input_size=(64,), device="meta")


def test_images_are_the_same_each_time() -> None:
    (_, one), (_, other) = (load("test_resnet") for _ in range(2))
    assert torch.equal(one, other)


def test_import_path(place: str) -> None:
    model, images = load("some_models:Net", {"width": 6}, [place])
    assert model[0].out_channels == 6
    assert tuple(images.shape) == (2, 3, 224, 224)
    assert type(load("some_models:nested.net", paths=[place])[0]) is type(model)
    assert tuple(load("some_models:Sized", paths=[place])[1].shape) == (2, 3, 32, 48)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_22", r"unknown timm model 'vit_tiny_patch16_22'; did you mean vit_tiny_patch16_224"),
        ("qqqqqqqqqqqqqqqqqqqq", "no known name is similar"),
        ("torchvision:swin_q", "unknown torchvision model 'swin_q'; did you mean swin_"),
        ("no_such_module:net", r"No module named 'no_such_module'; pass the directory of the module with --path"),
        ("bad_models:net", "bad_models cannot be imported: ZeroDivisionError"),
        ("some_models:thin", "unknown attribute of some_models 'thin'; did you mean thing"),
        ("some_models:thing", "is an int, expected a function or class"),
        ("some_models:number", "makes an int, expected a torch.nn.Module"),
        ("some_models:broken", r"cannot be built: RuntimeError: no luck\n  source: .*some_models.py:\d+ in broken"),
    ],
)
def test_what_goes_wrong(name: str, message: str, place: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(name, paths=[place])


def test_wrong_arguments_of_the_model() -> None:
    with pytest.raises(ModelError, match="unexpected keyword argument 'dept'"):
        load("test_vit", {"dept": 3})


@pytest.mark.parametrize(("name", "option"), [("test_vit", "pretrained"), ("torchvision:swin_t", "weights")])
def test_weights_are_never_downloaded(name: str, option: str) -> None:
    with pytest.raises(ModelError, match="--kwargs load no weights; remove the option, or use --pretrained"):
        load(name, {option: "DEFAULT"})


def test_dense_models_download_no_backbone() -> None:
    model, _ = load("torchvision:lraspp_mobilenet_v3_large", device="meta")
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize("text", ["", "x", "224x", "0", "-4", "1x2x3x4x5", "3,224,224"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ModelError, match="--input-size"):
        parse_size(text)


def test_from_arguments(place: str) -> None:
    parser = argparse.ArgumentParser()
    add_model(parser)
    given = ["some_models:Net", "--kwargs", '{"width": 5}', "--path", place, "--input-size", "8x12"]
    model, images = model_from(parser.parse_args(given))
    assert model[0].out_channels == 5
    assert tuple(images.shape) == (2, 3, 8, 12)
