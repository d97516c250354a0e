"""Weights from files: loaded whole, or refused with all that is wrong."""

from __future__ import annotations

import argparse
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tlfx.errors import ModelError
from tlfx.zoo.weights import load_weights


def model() -> nn.Module:
    """Two layers, one with buffers."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_weights_are_loaded(tmp_path: Path) -> None:
    trained, other = model(), model()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_names_and_shapes_that_do_not_fit(tmp_path: Path) -> None:
    state = model().state_dict()
    state["0.weight"] = torch.zeros(5, 3)
    state["head.weight"] = state.pop("0.bias")
    torch.save(state, tmp_path / "w.pt")
    untouched = model()
    before = untouched[1].running_mean.clone() + 1
    untouched[1].running_mean.copy_(before)
    with pytest.raises(ModelError) as raised:
        load_weights(untouched, tmp_path / "w.pt")
    assert str(raised.value) == (
        f"--weights '{tmp_path / 'w.pt'}' does not fit Sequential: missing: 0.bias; unexpected: head.weight; "
        "different shape: 0.weight is (5, 3), expected (4, 3). Name the model that it was saved from, with the same "
        "--kwargs"
    )
    assert torch.equal(untouched[1].running_mean, before)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"missing: 0\.weight, 0\.bias, 1\.weight and 4 more\."):
        load_weights(model(), tmp_path / "w.pt")


def test_files_that_hold_no_state_dict(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    with pytest.raises(ModelError, match=r"--weights: there is no file '.*w\.pt'"):
        load_weights(model(), file)
    torch.save({"epoch": 3, "weights": model().state_dict()}, file)
    with pytest.raises(ModelError, match=r"holds a dict of epoch, weights, expected a state_dict .* save only that"):
        load_weights(model(), file)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(ModelError, match="holds a list, expected a state_dict"):
        load_weights(model(), file)
    for content in (b"no archive", b"", b"hello", pickle.dumps(Path("/"), 2), pickle.dumps(print, 2)):
        file.write_bytes(content)
        words = r"(read as tensors \(\w+\)|not a file of torch.save, .* numbers of Python); write it with torch\.save"
        with pytest.raises(ModelError, match=words):
            load_weights(model(), file)


@pytest.mark.parametrize("part", ["state_dict_ema", "model_ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoints_of_training(part: str, prefix: str, tmp_path: Path) -> None:
    trained, other = model(), model()
    weights = {prefix + name: value for name, value in trained.state_dict().items()}
    rest = {"epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1), "arch": "x"}
    torch.save({**rest, "state_dict_ema": None, part: weights}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in trained.state_dict().items())


def test_the_moving_average_goes_first(tmp_path: Path) -> None:
    states = [model().state_dict() for _ in range(2)]
    torch.save({"state_dict": states[0], "state_dict_ema": states[1]}, tmp_path / "w.pt")
    loaded = model()
    load_weights(loaded, tmp_path / "w.pt")
    assert torch.equal(loaded[0].weight, states[1]["0.weight"])
    assert not torch.equal(loaded[0].weight, states[0]["0.weight"])


def test_names_of_the_authors_of_swin(tmp_path: Path) -> None:
    """Downsampling belongs to the stage before, the classifier has no fc, and masks and indices are stored."""
    build = partial(timm.create_model, "swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, num_classes=3)
    model, other = build(), build()
    state = {}
    for name, value in model.state_dict().items():
        old = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        state[old.replace("head.fc.", "head.")] = value
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    torch.save({"model": state, "epoch": 299}, tmp_path / "swin.pth")
    load_weights(other, tmp_path / "swin.pth")
    for one, same in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, same)


def test_renaming_does_not_resize_weights(tmp_path: Path) -> None:
    """timm would resample the position embedding of another image size."""
    build = partial(timm.create_model, "test_vit", num_classes=3)
    torch.save(build(img_size=32).state_dict(), tmp_path / "small.pth")
    with pytest.raises(ModelError, match=r"different shape: pos_embed is \(1, 5, 64\), expected \(1, 17, 64\)"):
        load_weights(build(img_size=64), tmp_path / "small.pth")
