"""`examples/evaluate.py` on small folders of images, against accuracies computed by hand from the same logits."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import EXAMPLES
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from torch import Tensor, nn

import tlfx

SIDE = 32
MODEL = ["--model", "test_vit", "--kwargs", f'{{"img_size": {SIDE}}}', "--img-size", str(SIDE)]
FAST = ["--workers", "0", "--device", "cpu", "--batch-size", "7"]


def tiny(seed: int, num_classes: int = 1000) -> nn.Module:
    """A vision transformer whose random head tells pictures apart."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("test_vit", img_size=SIDE, num_classes=num_classes)
    nn.init.normal_(model.get_parameter("head.weight"))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny(0)


@pytest.fixture(scope="module")
def checkpoint(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(model.state_dict(), file)
    return file


def draw(count: int, seed: int = 0, side: int = SIDE) -> list[Image.Image]:
    """Pictures of random squares."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST) for pixels in coarse]


@torch.no_grad()
def logits_of(model: nn.Module, pictures: Sequence[Image.Image], crop_pct: float = 0.95) -> Tensor:
    """Logits by timm's own preparation of images, all in one batch."""
    transform = create_transform(
        input_size=(3, SIDE, SIDE), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=crop_pct
    )
    return model(torch.stack([transform(picture) for picture in pictures]))


def ranked(logits: Tensor, ranks: Sequence[int]) -> list[int]:
    """For each row of the logits the class that comes at this rank, 0 the first."""
    return [int(row.argsort(descending=True)[rank]) for row, rank in zip(logits, ranks, strict=True)]


def save(root: Path, pictures: Sequence[Image.Image], folders: Sequence[str]) -> Path:
    """Write each picture into a folder."""
    for number, (picture, folder) in enumerate(zip(pictures, folders, strict=True)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / folder / f"{number}.png")
    return root


def percent(logits: Tensor, labels: Sequence[int], k: int) -> float:
    """Share of the rows whose label is among their k largest logits, counted one by one."""
    hits = [label in row.argsort(descending=True)[:k].tolist() for row, label in zip(logits, labels, strict=True)]
    return 100.0 * sum(hits) / len(hits)


def wnids() -> list[str]:
    return (files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()


def run(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    """The figures of a run that succeeds."""
    from evaluate import main

    assert main([*FAST, *map(str, arguments), "--json", str(tmp_path / "figures.json")]) == 0
    figures: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    return figures


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said of a run that fails."""
    from evaluate import main

    assert main([*FAST, *map(str, arguments)]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


RANKS = [0, 0, 3, 0, 4, 7, 0, 1, 900, 0, 2, 0, 5, 999, 0]
"""Ranks of the right classes of 15 pictures: 7 at the top, 4 more among the first five."""


def test_imagenet(model: nn.Module, checkpoint: Path, tmp_path: Path) -> None:
    pictures = [picture.resize((50, 41)) for picture in draw(15)]  # resized and cropped by the transform
    logits = logits_of(model, pictures)
    labels = ranked(logits, RANKS)
    root = save(tmp_path / "val", pictures, [wnids()[label] for label in labels]).parent  # its split is found
    figures = run(tmp_path, *MODEL, "--checkpoint", checkpoint, "--data-dir", root)
    assert (figures["images"], figures["classes"], figures["folders"]) == (15, 1000, len(set(labels)))
    assert figures["top1"] == pytest.approx(percent(logits, labels, 1)) == pytest.approx(100 * 7 / 15)
    assert figures["top5"] == pytest.approx(percent(logits, labels, 5)) == pytest.approx(100 * 11 / 15)
    safe = tmp_path / "vit.safetensors"
    save_file(model.state_dict(), safe)
    again = run(tmp_path, *MODEL, "--checkpoint", safe, "--data-dir", root, "--batch-size", "15")
    assert (again["top1"], again["top5"]) == (figures["top1"], figures["top5"])
    with torch.autocast("cpu"):
        mixed = percent(logits_of(model, pictures), labels, 5)
    of_amp = run(tmp_path, *MODEL, "--checkpoint", safe, "--data-dir", root, "--amp")["top5"]
    assert of_amp == pytest.approx(mixed, abs=100 / 15 + 1e-6)  # in another batch a picture may round otherwise


@pytest.mark.slow
def test_as_a_user_runs_it(model: nn.Module, checkpoint: Path, tmp_path: Path) -> None:
    pictures = draw(4)
    labels = ranked(logits_of(model, pictures), [0, 1, 0, 600])
    root = save(tmp_path / "images", pictures, [wnids()[label] for label in labels])
    command = [sys.executable, EXAMPLES / "evaluate.py", *MODEL, "--checkpoint", checkpoint, "--data-dir", root]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(
        [*map(str, command), "--workers", "1"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "test_vit" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if "clean" in line)
    assert row == ["clean", str(len(set(labels))), "of", "1000", "4", "50.00", "75.00"]
    assert list(root.parent.iterdir()) == [root]


def test_folders_of_imagenet_v2_are_in_numeric_order(model: nn.Module, checkpoint: Path, tmp_path: Path) -> None:
    pictures = draw(60, seed=1)
    logits = logits_of(model, pictures)
    labels = [int(row[:12].argmax()) for row in logits]
    labels[::3] = ranked(logits[::3], [0] * 20)
    names = sorted(str(label) for label in set(labels))
    assert names != sorted(names, key=int)
    root = save(tmp_path / "v2", pictures, [str(label) for label in labels])
    figures = run(tmp_path, *MODEL, "--checkpoint", checkpoint, "--dataset", "imagenet-v2", "--data-dir", root)
    assert figures["top1"] == pytest.approx(percent(logits, labels, 1))
    assert figures["top5"] == pytest.approx(percent(logits, labels, 5))
    alphabetical = [names.index(str(label)) for label in labels]
    assert abs(figures["top1"] - percent(logits, alphabetical, 1)) > 20


@pytest.mark.parametrize("dataset", ["imagenet-a", "imagenet-r"])
def test_only_logits_of_the_subset_take_part(dataset: str, model: nn.Module, checkpoint: Path, tmp_path: Path) -> None:
    listed = files("timm.data") / "_info" / f"{dataset.replace('-', '_')}_indices.txt"  # the example reads the synsets
    columns = [int(line) for line in listed.read_text().split()]
    pictures = draw(15, seed=2)
    logits = logits_of(model, pictures)
    labels = ranked(logits[:, columns], [min(rank, 199) for rank in RANKS])
    root = save(tmp_path / "subset", pictures, [wnids()[columns[label]] for label in labels])
    (root / "README.txt").write_text("as it is published")
    figures = run(tmp_path, *MODEL, "--checkpoint", checkpoint, "--dataset", dataset, "--data-dir", root)
    assert (figures["classes"], figures["images"]) == (200, 15)
    assert figures["top1"] == pytest.approx(100 * 7 / 15)
    assert figures["top5"] == pytest.approx(100 * 11 / 15)
    of_all = percent(logits, [columns[label] for label in labels], 1)  # what all 1000 logits would give
    assert of_all < figures["top1"] - 20


def test_few_classes_by_name(tmp_path: Path) -> None:
    """Alphabetical order and a class map, top-3 of three classes, and what checkpoints hold."""
    plain, average = tiny(3, num_classes=3), tiny(4, num_classes=3)
    file = tmp_path / "trained.pth"
    content = {"state_dict": tlfx.align(plain).state_dict(), "state_dict_ema": average.state_dict()}
    torch.save({"epoch": 9, "args": argparse.Namespace(lr=1e-3), **content}, file)  # as timm writes it
    pictures = draw(20, seed=3)
    names = ["ant", "bee", "cow"]
    labels = [number % 3 for number in range(20)]
    root = save(tmp_path / "animals", pictures, [names[label] for label in labels])
    base = [*MODEL, "--checkpoint", file, "--dataset", "folder", "--data-dir", root]
    figures = run(tmp_path, *base)
    assert figures["top1"] == pytest.approx(percent(logits_of(tlfx.unalign(plain), pictures), labels, 1))
    assert figures["top3"] == pytest.approx(100.0)
    assert "top5" not in figures
    average_top1 = percent(logits_of(average, pictures), labels, 1)
    assert run(tmp_path, *base, "--use-ema")["top1"] == pytest.approx(average_top1)

    (tmp_path / "classes.txt").write_text("cow\nant\nbee\n")
    moved = [["cow", "ant", "bee"].index(names[label]) for label in labels]
    figures = run(tmp_path, *base, "--class-map", tmp_path / "classes.txt")
    assert figures["top1"] == pytest.approx(percent(logits_of(plain, pictures), moved, 1))
    some = run(tmp_path, *base, "--images", "5", "--seed", "1")
    assert some["images"] == 5
    assert some == run(tmp_path, *base, "--images", "5", "--seed", "1")


def test_published_weights(model: nn.Module, checkpoint: Path, tmp_path: Path) -> None:
    pictures = draw(3)
    labels = ranked(logits_of(model, pictures), [0, 9, 0])
    root = save(tmp_path / "images", pictures, [wnids()[label] for label in labels])
    kwargs = {"img_size": SIDE, "pretrained_cfg_overlay": {"file": str(checkpoint)}}  # stands for a download
    options = ["--model", "test_vit", "--kwargs", json.dumps(kwargs), "--img-size", str(SIDE), "--pretrained"]
    assert run(tmp_path, *options, "--data-dir", root)["top1"] == pytest.approx(100 * 2 / 3)


def write_corrupted(root: Path, model: nn.Module) -> dict[str, list[float]]:
    """Two corruptions of five severities, one in its published group; their errors where nothing is cropped."""
    errors: dict[str, list[float]] = {}
    for number, place in enumerate(("weather/fog", "snow")):
        for severity in range(1, 6):
            pictures = draw(8, seed=10 * number + severity)
            wrong = severity + number
            labels = ranked(logits_of(model, pictures, crop_pct=1.0), [0] * (8 - wrong) + [5] * wrong)
            save(root / place / str(severity), pictures, [wnids()[label] for label in labels])
            errors.setdefault(place.rpartition("/")[2], []).append(wrong / 8)
    return errors


def test_mce(model: nn.Module, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = write_corrupted(tmp_path / "c", model)
    pictures = draw(10, seed=5)
    labels = ranked(logits_of(model, pictures), [0] * 9 + [3])
    clean = save(tmp_path / "clean", pictures, [wnids()[label] for label in labels])
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"errors": {"snow": 0.5, "fog": 0.8, "frost": 0.9}, "clean_error": 0.3}))
    base = [*MODEL, "--checkpoint", checkpoint, "--dataset", "imagenet-c", "--data-dir", tmp_path / "c"]
    base += ["--corruptions", "fog", "snow"]
    figures = run(tmp_path, *base, "--baseline", baseline, "--clean-dir", clean)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert figures["by_severity"] == {name: pytest.approx(each) for name, each in errors.items()}
    fog, snow = (1 + 2 + 3 + 4 + 5) / 40, (2 + 3 + 4 + 5 + 6) / 40
    assert figures["errors"] == {"fog": pytest.approx(fog), "snow": pytest.approx(snow)}
    assert figures["ce"] == {"fog": pytest.approx(100 * fog / 0.8), "snow": pytest.approx(100 * snow / 0.5)}
    assert figures["mce"] == pytest.approx((100 * fog / 0.8 + 100 * snow / 0.5) / 2)
    assert figures["clean_error"] == pytest.approx(0.1)
    relative = 100 * ((fog - 0.1) / (0.8 - 0.3) + (snow - 0.1) / (0.5 - 0.3)) / 2
    assert figures["relative_mce"] == pytest.approx(relative)
    assert ["fog", "12.50", "25.00", "37.50", "50.00", "62.50", "37.50", f"{100 * fog / 0.8:.2f}"] in shown
    assert ["mCE", "of", "2", f"{figures['mce']:.2f}"] in shown
    assert ["relative", "mCE", "of", "2", f"{relative:.2f}"] in shown

    own = tmp_path / "own.json"
    own.write_text(json.dumps(figures))
    again = run(tmp_path, *base, "--baseline", own)  # what a run wrote is a baseline
    assert again["mce"] == pytest.approx(100.0)
    assert again["relative_mce"] is None  # its own clean error was not measured
    alexnet = run(tmp_path, *base)
    assert alexnet["ce"]["fog"] == pytest.approx(100 * fog / 0.819324)


def test_images_of_imagenet_c_are_not_cropped_again(model: nn.Module, checkpoint: Path, tmp_path: Path) -> None:
    write_corrupted(tmp_path / "c", model)
    base = [*MODEL, "--checkpoint", checkpoint, "--dataset", "imagenet-c", "--data-dir", tmp_path / "c"]
    base += ["--corruptions", "fog"]
    assert run(tmp_path, *base)["config"]["crop_pct"] == 1.0
    assert run(tmp_path, *base, "--crop-pct", "0.5")["config"]["crop_pct"] == 0.5


def test_alexnets_errors() -> None:
    from evaluation.corruption import ALEXNET, CORRUPTIONS, read_baseline
    from torchvision.models import AlexNet_Weights  # type: ignore[import-untyped]

    published = read_baseline(ALEXNET, CORRUPTIONS)
    assert set(published.errors) == set(CORRUPTIONS)
    assert len(CORRUPTIONS) == 15
    metrics = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
    assert published.clean == pytest.approx(1 - metrics["acc@1"] / 100)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return save(tmp_path / "animals", draw(4), ["ant", "bee", "bee", "cow"])


def folder_cases() -> Iterator[tuple[str, dict[str, int], str]]:
    """Dataset, folders with the number of their images, and what is said."""
    yield "imagenet", {}, "holds no class folders; expected one folder for each class, such as "
    yield "folder", {".": 2}, "holds images, but no class folders; expected one folder for each class"
    yield (
        "imagenet",
        {"n01440764": 1, "ant": 1, "bee": 1},
        "folders that are not classes: ant, bee; expected WordNet ids",
    )
    yield "imagenet", {"0": 1}, "of ImageNet's 1000 classes. Check --dataset and --data-dir"
    yield (
        "imagenet-v2",
        {"0": 1, "007": 1, "1000": 1},
        "that are not classes: 007, 1000; expected class indices, 0 to 999",
    )
    yield (
        "imagenet-a",
        {"n01440764": 1},
        "that are not classes: n01440764; expected WordNet ids, such as n01440764, of the 200",
    )
    yield "imagenet", {"n01440764": 1, "n01443537": 0}, "class folders without images: n01443537; add images (.jpg,"
    yield "folder", {"b": 0, "a": 0}, "class folders without images: a, b; add images (.jpg,"


@pytest.mark.parametrize(("dataset", "folders", "words"), list(folder_cases()))
def test_folders_that_are_refused(
    dataset: str, folders: Mapping[str, int], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name, count in folders.items():
        (root / name).mkdir(exist_ok=True)
        save(root, draw(count), [name] * count)
    said = refused(capsys, *MODEL, "--checkpoint", "none", "--dataset", dataset, "--data-dir", root)
    assert words in said
    assert f"evaluate.py: {root} holds" in said


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    for dataset in ("imagenet", "imagenet-c"):
        said = refused(capsys, *MODEL, "--checkpoint", "x", "--dataset", dataset, "--data-dir", missing)
        assert f"there is no folder '{missing}'; expected one" in said


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_read(workers: str, animals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = animals.parent / "weights.pth"
    torch.save(tiny(0, num_classes=3).state_dict(), file)
    broken = animals / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    base = [*MODEL, "--checkpoint", file, "--dataset", "folder", "--data-dir", animals]
    from evaluate import main

    assert main([*FAST, *map(str, base), "--workers", workers]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"evaluate.py: the image {broken} cannot be read: ")
    assert said.count("\n") == 1


def test_checkpoints_that_are_refused(animals: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [*MODEL, "--dataset", "folder", "--data-dir", animals]
    said = refused(capsys, *base, "--checkpoint", checkpoint)
    assert f"{checkpoint} does not fit test_vit: different shape: head.weight is (1000, 64), expected (3, 64)" in said
    assert (
        "Give its architecture with --model and --kwargs; it must have one logit for each class of the dataset" in said
    )
    other = animals.parent / "other.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), other)
    said = refused(capsys, *base, "--checkpoint", other)
    assert "missing: cls_token, pos_embed, patch_embed.proj.weight and " in said
    assert "unexpected: conv1." in said
    assert "has no weights" not in said
    torch.save({"state_dict": tiny(0, num_classes=3).state_dict()}, other)
    assert f"{other} has no moving average (state_dict_ema or model_ema); omit --use-ema" in refused(
        capsys, *base, "--checkpoint", other, "--use-ema"
    )
    other.write_bytes(b"no weights")
    assert f"{other} cannot be read as a checkpoint: " in refused(capsys, *base, "--checkpoint", other)
    assert "cannot be read as a checkpoint: " in refused(capsys, *base, "--checkpoint", other, "--use-ema")
    torch.save([1, 2], other)
    assert f"{other} cannot be read as a checkpoint: " in refused(capsys, *base, "--checkpoint", other)
    assert "--checkpoint: there is no file 'none'" in refused(capsys, *base, "--checkpoint", "none")


def test_weights_that_are_no_numbers(animals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny(0, num_classes=3).state_dict()
    state["head.bias"][1] = float("nan")
    file = animals.parent / "broken.pth"
    torch.save(state, file)
    said = refused(capsys, *MODEL, "--checkpoint", file, "--dataset", "folder", "--data-dir", animals)
    assert "some logits are infinite or NaN: the weights are damaged, or --amp overflows" in said


def test_corruptions_that_are_missing(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corrupted(tmp_path / "c", model)
    (tmp_path / "c" / "snow" / "4").rename(tmp_path / "c" / "snow" / "6")
    base = [*MODEL, "--checkpoint", "x", "--dataset", "imagenet-c", "--data-dir", tmp_path / "c"]
    said = refused(capsys, *base, "--corruptions", "fog", "frost", "snow", "contrast")
    assert f"{tmp_path / 'c'} lacks frost; snow of severity 4; contrast. Expected CORRUPTION/SEVERITY/CLASS/" in said
    said = refused(capsys, *base)
    assert all(name in said for name in ("gaussian_noise", "jpeg_compression", "snow of severity 4"))
    assert "fog" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read: "),
        ('{"top1": 80}', 'has no errors by corruption; expected a file such as {"errors": {"fog": 0.82}'),
        ('{"errors": {"snow": 0.5}}', "lacks the errors of fog"),
        ('{"errors": {"fog": 81.9}}', "fog 81.9; expected shares of the images, above 0 and at most 1"),
        ('{"errors": {"fog": 0.0}}', "fog 0.0; expected shares"),
        ('{"errors": {"fog": 0.4}, "clean_error": 0.4}', "its errors under fog are not above its clean error"),
    ],
)
def test_baselines_that_are_refused(
    text: str, words: str, model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corrupted(tmp_path / "c", model)
    file = tmp_path / "baseline.json"
    file.write_text(text)
    base = [*MODEL, "--checkpoint", "x", "--dataset", "imagenet-c", "--data-dir", tmp_path / "c"]
    said = refused(capsys, *base, "--corruptions", "fog", "--baseline", file)
    assert f"--baseline {file}" in said
    assert words in said


def test_too_few_images_and_class_maps(animals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = animals.parent / "weights.pth"
    torch.save(tiny(0, num_classes=3).state_dict(), file)
    base = [*MODEL, "--checkpoint", file, "--dataset", "folder", "--data-dir", animals]
    assert f"--images 5: {animals} holds 4" in refused(capsys, *base, "--images", "5")
    names = animals.parent / "names.txt"
    names.write_text("ant\nbee\nant\n")
    assert f"--class-map {names}: expected the name of a different class in each line" in refused(
        capsys, *base, "--class-map", names
    )
    names.write_text("ant\nbee\n")
    assert f"folders that are not classes: cow; expected one of the 2 classes of {names}" in refused(
        capsys, *base, "--class-map", names
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "pass either --checkpoint FILE, or --pretrained for the weights that timm publishes"),
        (["--checkpoint", "x", "--pretrained"], "pass either --checkpoint FILE, or --pretrained"),
        (["--pretrained", "--use-ema"], "--use-ema requires --checkpoint; published weights have no moving average"),
        (["--checkpoint", "x", "--json", "no/such.json"], "there is no folder 'no' to write such.json into"),
        (["--checkpoint", "x", "--class-map", "y"], "--class-map requires --dataset folder"),
        (["--checkpoint", "x", "--clean-dir", "y"], "--clean-dir requires --dataset imagenet-c, not imagenet"),
        (["--checkpoint", "x", "--corruptions", "fog"], "--corruptions requires --dataset imagenet-c, not imagenet"),
        (["--checkpoint", "x", "--baseline", "y"], "--baseline requires --dataset imagenet-c, not imagenet"),
        (["--checkpoint", "x", "--eps", "8/255"], "--eps requires --attack, one of autoattack"),
        (["--checkpoint", "x", "--crop-pct", "0"], "'0': expected a number above 0"),
        (["--checkpoint", "x", "--workers", "-1"], "'-1': expected a whole number from 0"),
        (["--checkpoint", "x", "--batch-size", "0"], "'0': expected a whole number from 1"),
        (["--checkpoint", "x", "--kwargs", "[1]"], "expected a JSON object such as"),
        (["--checkpoint", "x", "--device", "abacus"], "--device: abacus: "),
        (["--checkpoint", "x", "--attack", "pgd", "--eps", "8/0"], "expected a number above 0, such as 8/255 or 0.03"),
        (
            ["--checkpoint", "x", "--attack", "pgd", "--norm", "L2"],
            "--norm L2 requires --eps; the default of 8/255 is for Linf",
        ),
        (["--checkpoint", "x", "--attack", "pgd", "--amp"], "--attack needs exact gradients; omit --amp"),
        (["--checkpoint", "x", "--attack", "pgd", "--dataset", "imagenet-c"], "--attack requires images without"),
    ],
)
def test_settings_that_cannot_be_run(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from evaluate import main

    with pytest.raises(SystemExit, match="2"):
        main(["--model", "test_vit", "--data-dir", "images", *arguments])
    assert words in capsys.readouterr().err


def test_doctests() -> None:
    import doctest
    import importlib

    for name in ("class_folders",):
        results = doctest.testmod(importlib.import_module(name))
        assert results.attempted
        assert not results.failed
