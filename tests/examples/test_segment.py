"""`examples/segment.py`: whole, killed and resumed, in two processes, and what it refuses."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from downstream.ade20k import IGNORED, LabelMaps, augment
from downstream.dense_mix import dense_loss, mix_label_maps
from downstream.mean_iou import confusion, evaluate, figures
from downstream.segmenter import build
from helpers import EXAMPLES, slow_except
from imagenet.distributed import Processes
from imagenet.order import seed_generators
from PIL import Image
from runs import KILLER, rows, run, weights
from segment import main, parse
from torch import Tensor, nn

from tlfx.mix import CutMix

DEIT = ["--backbone", "deit_tiny", "--model-kwargs", "embed_dim=24", "depth=4", "num_heads=2", "--crop-size", "32"]
SWIN = ["--backbone", "swin_tiny", "--model-kwargs", "embed_dim=8", "depths=[1,1,1,1]", "num_heads=[1,1,2,2]"]
SWIN += ["window_size=2", "--crop-size", "64"]
COMMON = [
    "--num-classes",
    "3",
    "--head-width",
    "8",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--warmup",
    "1",
    "--lr",
    "1e-3",
]
COMMON += ["--log-interval", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "training", 9)
    write_split(folder, "validation", 3)
    return folder


def write_split(root: Path, split: str, count: int) -> None:
    """Pictures of coloured halves, labelled 1 to 3, with a corner of label 0."""
    rng = np.random.default_rng(count)
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True)
    for number in range(count):
        labels = np.full((40, 56 + 8 * (number % 2)), 1 + number % 3, np.uint8)
        labels[:, 28:] = 1 + (number + 1) % 3
        labels[:8, :8] = 0
        pixels = rng.integers(0, 64, (*labels.shape, 3)) + 60 * (labels[..., None] == (1, 2, 3)) * 3
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{number}.jpg")
        Image.fromarray(labels).save(root / "annotations" / split / f"{number}.png")


def train(data: Path, folder: Path, *arguments: object) -> None:
    main([*COMMON, "--data-dir", str(data), "--output", str(folder), *map(str, arguments)])


ALIGNED = [
    *DEIT,
    "--cutmix",
    "1",
    "--updates",
    "5",
    "--batch-size",
    "2",
    "--eval-steps",
    "3",
    "--checkpoint-steps",
    "2",
]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aligned run of five updates, over an epoch's end, on the weights of a DeiT of other images."""
    folder = tmp_path_factory.mktemp("whole")
    deit = timm.create_model("deit_tiny_patch16_224", embed_dim=24, depth=4, num_heads=2, img_size=64, num_classes=7)
    torch.save(deit.state_dict(), folder / "deit.pth")
    train(data, folder / "run", *ALIGNED, "--backbone-checkpoint", folder / "deit.pth")
    return folder / "run"


@pytest.mark.slow
def test_an_aligned_run_is_logged_evaluated_and_kept(
    data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [row["updates"] for row in rows(whole / "train.csv")] == list("12345")
    summary = rows(whole / "summary.csv")
    assert [row["updates"] for row in summary] == ["3", "5"]
    assert 0.0 < float(summary[-1]["lambda_gap"]) < 0.5
    assert 0.0 < float(summary[-1]["mIoU"]) <= float(summary[-1]["mAcc"]) <= 100.0
    main(["--config", str(whole / "args.yaml"), "--evaluate", str(whole / "last.pth.tar"), "--multi-scale"])
    told = dict(re.findall(r"([\w]+(?: \(MS\))?) ([\d.]+)", capsys.readouterr().out.split("update 5")[1]))
    assert float(told["mIoU"]) == pytest.approx(float(summary[-1]["mIoU"]), rel=1e-3)
    assert {"mIoU (MS)", "mAcc (MS)"} <= told.keys()


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_weights(data: Path, whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "killer.py"
    script.write_text(KILLER.format(examples=str(EXAMPLES), script="segment", update=5))
    given = [*COMMON, *ALIGNED, "--data-dir", data, "--output", tmp_path / "run"]
    given += ["--backbone-checkpoint", whole.parent / "deit.pth", "--workers", "1"]
    done = run(script, *given)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)["progress"]["update"] == 4
    main(["--config", str(tmp_path / "run" / "args.yaml"), "--resume", "--workers", "0"])
    for key, value in weights(whole).items():
        assert torch.equal(weights(tmp_path / "run")[key], value), key
    for name in ("train.csv", "summary.csv"):
        assert rows(tmp_path / "run" / name) == rows(whole / name)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["--cutmix", "1", "--no-align"], ["--cutmix", "1", "--cutmix-prob", "0.5"], []])
def test_two_processes_train_as_one(targets: list[str], data: Path, tmp_path: Path) -> None:
    given = [*COMMON, *DEIT, *targets, "--updates", "2", "--eval-steps", "2", "--data-dir", data]
    main([*map(str, given), "--grad-accum-steps", "2", "--output", str(tmp_path / "one")])
    done = run(EXAMPLES / "segment.py", *given, "--output", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        if "running" not in key and "num_batches" not in key:  # these are averages of the first process's batches
            torch.testing.assert_close(two[key], value, atol=2e-6, rtol=1e-4)
    for first, second in zip(rows(tmp_path / "one" / "train.csv"), rows(tmp_path / "two" / "train.csv"), strict=True):
        assert {k: float(v) for k, v in first.items()} == pytest.approx(
            {k: float(v) for k, v in second.items()}, rel=1e-4
        )


@pytest.mark.slow
def test_a_swin_starts_from_a_classifier_and_learns(data: Path, tmp_path: Path) -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=2,
    )
    torch.save({"state_dict": swin.state_dict()}, tmp_path / "swin.pth")
    given = [*COMMON, *SWIN, "--backbone-checkpoint", tmp_path / "swin.pth", "--data-dir", data]
    model = build(parse([*map(str, given), "--output", "none"]))
    own = model.backbone.state_dict()
    assert torch.equal(own["swin.encoder.layers.2.blocks.0.mlp.fc2.weight"], swin.layers[2].blocks[0].mlp.fc2.weight)
    backbone: Any = model.backbone
    heads: dict[str, Any] = {"auxiliary_channels": 4, "auxiliary_in_channels": 32, "num_labels": 3}
    config = UperNetConfig(backbone_config=backbone.config, hidden_size=8, **heads)
    other: Any = UperNetForSemanticSegmentation(config)
    other.load_state_dict(model.state_dict())  # the same names
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(other.eval()(images).logits, model.eval()(images)[0])
    longer = ["--updates", "60", "--lr", "5e-3", "--drop-path", "0", "--head-width", "16"]
    main([*map(str, given), *longer, "--output", str(tmp_path / "run")])
    assert float(rows(tmp_path / "run" / "summary.csv")[0]["mIoU"]) > 80.0
    main([*map(str, given), "--updates", "1", "--cutmix", "1", "--output", str(tmp_path / "aligned")])
    assert 0.0 < float(rows(tmp_path / "aligned" / "summary.csv")[0]["lambda_gap"]) < 0.5


TABLE_3 = [("deit_small", 58), ("swin_tiny", 60), ("swin_small", 81), ("swin_base", 121)]


@pytest.mark.parametrize(("backbone", "millions"), slow_except({("deit_small", 58), ("swin_tiny", 60)}, TABLE_3))
def test_parameters_are_those_of_table_3(backbone: str, millions: int) -> None:
    with torch.device("meta"):
        model = build(parse(["--data-dir", "none", "--output", "none", "--backbone", backbone]))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("depth", "blocks", "places"), [(12, [2, 5, 8, 11], [0, 1, 2, 3]), (3, [0, 1, 2], [0, 0, 1, 2])]
)
def test_the_pyramid_of_a_deit_reads_quarters_of_its_depth(depth: int, blocks: list[int], places: list[int]) -> None:
    given = ["--backbone", "deit_tiny", "--crop-size", "32", "--head-width", "8"]
    kwargs = [f"depth={depth}", "embed_dim=12", "num_heads=2", "patch_size=4"]
    made: Any = build(parse([*given, "--data-dir", "none", "--output", "none", "--model-kwargs", *kwargs])).eval()
    pyramid = made.backbone
    assert pyramid.model.out_indices == blocks
    images = torch.randn(1, 3, 32, 32)
    features = pyramid.model(images)
    maps = pyramid(images)
    assert [x.shape[2] for x in maps] == [32, 16, 8, 4]
    for level, scale in ((2, 1), (3, 0.5)):
        x = pyramid.lateral[level](features[places[level]])
        x = nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")
        torch.testing.assert_close(maps[level], pyramid.smooth[level](x))
    assert pyramid.places == places


def test_a_swin_of_two_stages_has_two_maps(tmp_path: Path) -> None:
    """Those of the Swin that its weights come from; the auxiliary head reads the last map but one."""
    sizes: dict[str, Any] = {"patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "mlp_ratio": 2.0}
    plain: Any = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False, **sizes).eval()
    torch.save(plain.state_dict(), tmp_path / "swin.pt")
    given = ["--crop-size", "64", "--head-width", "8", "--num-classes", "3", "--drop-path", "0"]
    given += ["--backbone-checkpoint", str(tmp_path / "swin.pt"), "--data-dir", "none", "--output", "none"]
    model: Any = build(parse([*given, "--model-kwargs", *(f"{key}={value}" for key, value in sizes.items())]))
    images = torch.randn(2, 3, 56, 56)  # whole windows: timm pads others after shifting them, Swin's authors before
    assert [tuple(x.shape) for x in model(images)] == [(2, 3, 56, 56)] * 2
    assert (model.auxiliary_head.in_index, model.auxiliary_head.in_channels) == (0, 24)
    with torch.no_grad():
        maps = model.eval().backbone(images).feature_maps
        expected = plain.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 28, 28), (48, 14, 14)]
    for x, features in zip(maps, expected, strict=True):  # the new norms begin without a scale
        normed = nn.functional.layer_norm(features.movedim(1, 3), features.shape[1:2])
        torch.testing.assert_close(x.movedim(1, 3), normed, atol=1e-4, rtol=1e-4)


def test_dense_cutmix_keeps_pixels_and_their_labels_together() -> None:
    torch.manual_seed(3)
    labels = torch.randint(0, 4, (4, 16, 16))
    images = labels[:, None].expand(-1, 3, -1, -1).float()
    mixed = mix_label_maps(CutMix(num_classes=4), images, labels)
    mask = mixed.target.mask[:, 0]
    assert 0.0 < mask.mean() < 1.0
    pasted = torch.where(mask == 1, mixed.first, mixed.second)
    assert torch.equal(mixed.images, pasted[:, None].expand(-1, 3, -1, -1).float())
    logits = torch.randn(4, 4, 16, 16)
    expected = torch.nn.functional.cross_entropy(logits, pasted)
    torch.testing.assert_close(dense_loss(logits, mask, mixed.first, mixed.second), expected)
    soft = torch.nn.functional.one_hot(mixed.first, 4) * 0.3 + torch.nn.functional.one_hot(mixed.second, 4) * 0.7
    expected = torch.nn.functional.cross_entropy(logits, soft.movedim(3, 1))
    torch.testing.assert_close(dense_loss(logits, mask * 0 + 0.3, mixed.first, mixed.second), expected)


def test_augmentation_moves_labels_with_pixels(data: Path) -> None:
    image, labels = LabelMaps(data, "training", 3)[0]
    assert set(labels.unique().tolist()) == {0, 1, IGNORED}
    for seed in range(4):
        seed_generators(seed)
        pixels, moved = augment(image, labels, 64)
        assert pixels.shape == (3, 64, 64)
        assert moved.shape == (64, 64)
        inside = moved != IGNORED
        brighter = pixels[0] > pixels[1]  # label 0 is red, label 1 green
        assert (brighter[inside] == (moved[inside] == 0)).float().mean() > 0.95
        assert pixels[:, (pixels == 0).all(0)].numel() == 0 or (moved[(pixels == 0).all(0)] == IGNORED).all()


class Oracle(nn.Module):
    """Logits of the colour of each pixel."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (images * 10,)


def test_figures_are_those_by_hand(data: Path) -> None:
    predicted, labels = torch.randint(0, 3, (50,)), torch.randint(0, 4, (50,))
    labels[labels == 3] = IGNORED
    counts = confusion(predicted, labels, 3).double()
    iou = []
    for c in range(3):
        a, b = (predicted == c) & (labels != IGNORED), labels == c
        iou.append((a & b).sum().item() / (a | b).sum().item())
    assert figures(counts)["mIoU"] == pytest.approx(100 * sum(iou) / 3)
    one = Processes(0, 1, torch.device("cpu"))
    measured = evaluate(Oracle(), LabelMaps(data, "validation", 3), one, 40, (1.0, 1.5), flip=True, workers=0)
    assert measured["mIoU"] > 95.0


def lose_annotation(data: Path) -> None:
    (data / "annotations" / "training" / "3.png").unlink()


def lose_folder(data: Path) -> None:
    shutil.rmtree(data / "annotations" / "validation")


def no_images(data: Path) -> None:
    shutil.rmtree(data / "images" / "training")
    (data / "images" / "training").mkdir()


def break_annotation(data: Path) -> None:
    for file in (data / "annotations" / "training").iterdir():
        file.write_bytes(file.read_bytes()[:60])


def colour_annotation(data: Path) -> None:
    for file in (data / "annotations" / "training").iterdir():
        Image.open(file).convert("RGB").save(file)


def crop_annotation(data: Path) -> None:
    for file in (data / "annotations" / "training").iterdir():
        Image.open(file).crop((0, 0, 20, 20)).save(file)


def more_classes(data: Path) -> None:
    for file in (data / "annotations" / "training").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) * 4).save(file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_annotation, "lacks the annotations of 3: a .png file for each image"),
        (lose_folder, "there is no folder"),
        (no_images, "holds no images (.jpg, .png)"),
        (break_annotation, "cannot be read as an image"),
        (colour_annotation, "has mode RGB, expected one label a pixel"),
        (crop_annotation, "pixels, but its image"),
        (more_classes, "has label 12, expected 0 to 3: 0 for none, and --num-classes 3"),
    ],
)
def test_broken_data_is_refused(damage: Callable[[Path], None], words: str, data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    damage(broken)
    with pytest.raises(SystemExit) as caught:
        train(broken, tmp_path / "run", *DEIT, "--updates", "1")
    assert words in str(caught.value)
    assert not list(tmp_path.glob("run/*.tar"))


@pytest.mark.slow
def test_other_runs_and_weights_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    def refused(words: str, *arguments: object) -> None:
        with pytest.raises(SystemExit) as caught:
            train(data, whole, *ALIGNED, "--backbone-checkpoint", whole.parent / "deit.pth", *arguments)
        assert words in str(caught.value)

    before = {file: file.read_bytes() for file in whole.iterdir()}
    refused("holds another run")
    refused("the checkpoint has 3 classes, but --num-classes is 4", "--resume", "--num-classes", "4")
    refused("this run was started with lr 0.001 (now 0.1)", "--resume", "--lr", "0.1")
    refused("the checkpoint is of deit_tiny, but --backbone is deit_small", "--resume", "--backbone", "deit_small")
    assert {file: file.read_bytes() for file in whole.iterdir()} == before
    other: list[object] = ["--output", tmp_path / "new"]
    refused("holds a deit of another size or kind than --backbone deit_tiny", *other, "--model-kwargs", "embed_dim=48")
    refused("there is no file", *other, "--backbone-checkpoint", tmp_path / "none.pth")
    refused("--evaluate: there is no file", "--evaluate", tmp_path / "none.pth")
    (tmp_path / "cut.tar").write_bytes((whole / "last.pth.tar").read_bytes()[:-100])
    refused("cut.tar is damaged or is not a checkpoint", "--evaluate", tmp_path / "cut.tar")
    refused("pass it as --backbone-checkpoint", "--evaluate", whole.parent / "deit.pth")
    refused("holds a deit of another size or kind than --backbone swin_tiny", *other, *SWIN)
    refused("9 images are too few for one update", *other, "--batch-size", "10")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--align"], "no images are mixed"),
        (["--crop-size", "50"], "expected a multiple of 32"),
        (["--batch-size", "0"], "--batch-size 0: expected a number of at least 1"),
        (["--cutmix", "1", "--batch-size", "1"], "images are mixed within a batch; pass 2 or more"),
        (["--cutmix", "-1"], "--cutmix: expected at least 0"),
    ],
)
def test_invalid_options_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(Path("none"), Path("none"), *arguments)
    assert words in capsys.readouterr().err


def test_help_says_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told: Any = capsys.readouterr().out
    assert "without synchronisation" in told
