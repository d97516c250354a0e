"""`--method` of `examples/train_imagenet.py`: mixers and targets of the paper's Table 2 by their names."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from imagefolder import SMALL
from torch import nn

import tlfx
from tlfx.errors import ModelError

ATTENTION = ["--attention-model", "test_resnet", "--attention-patches", "1"]
KINDS = {
    "plain": "Mixup",
    "saliencymix": "SaliencyMix",
    "attentive": "AttentiveCutMix",
    "puzzlemix": "PuzzleMix",
    "transmix": "Mixup",
    "aligned": "Mixup",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the network that Attentive CutMix looks with, with another number of classes."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "attention.pth"
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), file)
    return file


def options_of(*arguments: str | Path) -> Namespace:
    from imagenet.options import parse

    folders = ["--data-dir", "data", "--output", "run", "--num-classes", "4"]
    return parse("", [*SMALL, *folders, "--cutmix", "1", *ATTENTION, *map(str, arguments)])


def trainer_of(options: Namespace) -> Any:
    from imagenet.distributed import Processes
    from imagenet.model import build_model
    from train_imagenet import choose_learning_rate, make_trainer

    choose_learning_rate(options, options.batch_size)
    model, config = build_model(options, options.num_classes)
    return make_trainer(model, config["input_size"], options, Processes(0, 1, torch.device("cpu")), 4)[0]


@pytest.mark.parametrize("method", KINDS)
def test_every_method_trains(method: str, weights: Path) -> None:
    from imagenet.mixing import METHODS

    assert set(METHODS) == set(KINDS)
    trainer = trainer_of(options_of("--method", method, "--attention-checkpoint", weights))
    assert type(trainer.mixer).__name__ == KINDS[method]
    assert isinstance(trainer.bare, tlfx.Aligned) == (method in ("transmix", "aligned"))
    generator = torch.Generator().manual_seed(0)
    before = [p.detach().clone() for p in trainer.bare.parameters()]
    for done in range(1, 4):
        batch = (torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4))
        trainer.update([batch], range(1), epoch=0, done=done)
    figures = trainer.meter.figures()
    assert math.isfinite(figures["train_loss"])
    assert (figures["lambda_gap"] > 1e-4) == (method in ("transmix", "aligned"))
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.bare.parameters(), strict=True))


def test_a_method_goes_before_other_flags() -> None:
    assert options_of("--method", "plain", "--align").align is False
    assert options_of("--method", "transmix", "--no-align").align_layers == ["-1"]
    aligned = options_of("--method", "aligned", "--align-layers", "blocks.0")
    assert (aligned.align, aligned.align_layers) == (True, ["blocks.0"])
    assert options_of("--no-align").align is False


@pytest.mark.parametrize("method", ["plain", "transmix", "aligned"])
def test_a_method_without_mixing_is_refused(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options_of("--cutmix", "0", "--method", method)
    assert f"--method {method} chooses the target of mixed images, but no images are mixed: pass --cutmix 1.0," in (
        " ".join(capsys.readouterr().err.split())
    )
    assert options_of("--cutmix", "0", "--mixup", "0.8", "--method", method).mixup == 0.8
    assert options_of("--cutmix", "0", "--no-align").method is None


def test_mixers_keep_the_settings_of_mixing(weights: Path) -> None:
    from imagenet.mixing import make_mixer

    options = options_of(
        *("--method", "saliencymix", "--cutmix", "0.3", "--mixup-prob", "0.7", "--smoothing", "0.2"),
        *("--mixup-mode", "elem"),
    )
    mixer: Any = make_mixer(nn.Linear(1, 1), options)
    assert (mixer.alpha, mixer.mix_prob, mixer.label_smoothing, mixer.mode) == (0.3, 0.7, 0.2, "elem")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing.pth", "--attention-checkpoint: there is no file"),
        ("broken.pth", "--attention-checkpoint .* cannot be"),
    ],
)
def test_weights_of_attention_that_cannot_be_had(file: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=words):
        trainer_of(options_of("--method", "attentive", "--attention-checkpoint", tmp_path / file))
