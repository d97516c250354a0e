"""What `examples/train_imagenet.py` refuses, in which words, and that it leaves everything as it was."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from imagefolder import SMALL, write_folders, write_pictures

RUN = ["--batch-size", "8", "--epochs", "1", "--cutmix", "1", "--no-align"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data"), train=4, val=2)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(data, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to damage."""
    return shutil.copytree(finished, tmp_path / "run")


def train(data: Path, folder: Path, *arguments: str | Path) -> None:
    from train_imagenet import main

    main([*SMALL, *RUN, "--data-dir", str(data), "--output", str(folder), *map(str, arguments)])


def refused(words: str, data: Path, folder: Path, *arguments: str | Path) -> None:
    """The script leaves with these words, and the folder of the run is as it was."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} if folder.exists() else None
    with pytest.raises(SystemExit) as caught:
        train(data, folder, *arguments)
    assert words in str(caught.value)
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} if folder.exists() else None
    assert after == before


def no_folder(data: Path) -> None:
    shutil.rmtree(data)


def no_split(data: Path) -> None:
    (data / "val").rename(data / "testing")


def no_classes(data: Path) -> None:
    shutil.rmtree(data / "train")
    write_pictures(data / "train", 3, 0)


def no_images(data: Path) -> None:
    for name in ("bee", "dog"):
        for file in (data / "train" / name).iterdir():
            file.rename(file.with_suffix(".txt"))


def other_classes(data: Path) -> None:
    (data / "val" / "bee").rename(data / "val" / "elk")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            no_folder,
            "there is no folder '{data}'; expected one with a folder for each class, or with splits of them",
        ),
        (no_split, "{data} has no folder val or validation or valid; it holds testing, train"),
        (
            no_classes,
            "{data}/train holds images, but no class folders; expected one folder for each class, such as "
            "{data}/train/n01440764/image.jpg",
        ),
        (
            no_images,
            "{data}/train holds class folders without images: bee, dog; add images (.jpg, .png, .webp, …) or remove",
        ),
        (
            other_classes,
            "and {data}/val differ, so that their labels have different meanings: the second lacks bee and adds elk",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_data_that_is_not_as_it_should_be(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", train=2, val=1)
    damage(data)
    refused(words.format(data=data), data, tmp_path / "run")


@pytest.mark.parametrize("name", ["torch/cifar10", "torch/cifar100", "torch/flowers102", "torch/stanford_cars"])
def test_data_of_torchvision_that_is_not_there(name: str, tmp_path: Path) -> None:
    refused(
        f"{name} is incomplete in --data-dir {tmp_path}: Dataset not found",
        tmp_path,
        tmp_path / "run",
        "--dataset",
        name,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--batch-size", "7"],
            "--batch-size 7: images are mixed in pairs within a batch of one process; pass an even",
        ),
        (
            ["--batch-size", "1"],
            "--batch-size 1: images are mixed in pairs within a batch of one process; pass an even",
        ),
        (["--epochs", "0"], "--epochs 0: expected a number of at least 1"),
        (["--mixup-prob", "1.5"], "--mixup-prob 1.5: expected a share between 0 and 1"),
        (["--align-layers", "-1"], "--align-layers and --no-align contradict each other: omit one of them"),
        (["--residual", "skip"], "--residual is for aligned targets: omit it, or --no-align"),
        (["--target-scale", "2"], "--target-scale is for aligned targets: omit it, or --no-align"),
        (["--align", "--target-scale", "0"], "--target-scale 0.0: expected a positive number"),
    ],
)
def test_settings_that_no_run_can_begin_with(
    arguments: list[str], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("2", data, tmp_path / "run", *arguments)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--img-size", "36"],
            "images of 36×36 pixels are not a multiple of the model's patches of 8×8: pass an --img-size",
        ),
        (
            ["--model", "vit_tiny_patch16_223"],
            "unknown timm model 'vit_tiny_patch16_223'; did you mean vit_tiny_patch16_224",
        ),
        (["--batch-size", "32"], "16 images are too few for one update: --batch-size 32 in 1 batches"),
        (["--num-classes", "3"], "--num-classes 3: the data has 4 classes"),
        (
            ["--opt", "adamww"],
            "--opt adamww: timm cannot create this optimiser: Optimizer adamww not found in registry",
        ),
        (["--aa", "best"], "--aa best: timm does not know this policy (Unknown AA policy best); expected one such as"),
        (
            ["--aa", "rand-x9"],
            "--aa rand-x9: timm does not know this policy (Unknown RandAugment config section); expe",
        ),
        (
            ["--fsdp"],
            "--fsdp shards a model over several processes: start them with torchrun --nproc-per-node 2 or more",
        ),
        (["--device", "cuda"], "--device cuda is not available; this machine has "),
        (
            ["--lr", "1e30", "--clip-grad", "1e30", "--log-interval", "1"],
            "the loss is nan at update 2; checkpoints are unchanged",
        ),
    ],
)
def test_settings_that_do_not_fit(arguments: list[str], words: str, data: Path, tmp_path: Path) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    if "nan" in words:
        with pytest.raises(SystemExit, match=words):
            train(data, tmp_path / "run", *arguments, "--warmup-epochs", "0")
        assert not (tmp_path / "run" / "last.pth.tar").exists()
    else:
        refused(words, data, tmp_path / "run", *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: [1]", "epochs: [1] is not valid: expected one value"),
        ("epochs: 1.5", "epochs: 1.5 is not valid: invalid literal for int() with base 10: '1.5'"),
        ("amp: 1", "amp: 1 is not valid: expected true or false"),
        ("scale: 0.5", "scale: 0.5 is not valid: expected a list of 2"),
        ("sched: sine", "sched: 'sine' is not valid: expected one of 'cosine', "),
        ("epoch: 3\nlearning-rate: 1", "unknown epoch, learning_rate; options are named as the flags of --help"),
        ("- epochs", "has no options: expected lines such as batch-size: 128"),
        ("epochs: [", "cannot be read: while parsing a flow node"),
        ("base: recipe.yaml", "recipe.yaml names recipe.yaml as its base, which is based on it"),
        ("base: none.yaml", "none.yaml cannot be read: [Errno 2]"),
    ],
)
def test_files_of_options(
    text: str, words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    refused("2", data, tmp_path / "run", "--config", file)
    assert words in capsys.readouterr().err


def test_a_folder_that_holds_another_run(data: Path, run: Path) -> None:
    words = f"--output {run} holds another run (last.pth.tar, summary.csv), which would be lost: continue it"
    refused(words, data, run)
    refused(
        "which would be lost: pass",
        data,
        run,
        "--resume",
        shutil.copy(run / "last.pth.tar", run.parent / "other.pth.tar"),
    )


def test_a_checkpoint_that_is_not_there(data: Path, tmp_path: Path) -> None:
    refused(f"--resume: there is no checkpoint {tmp_path}/run/last.pth.tar", data, tmp_path / "run", "--resume")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda _: b"", lambda _: b"no checkpoint"], ids=["cut", "flip", "empty", "text"]
)
def test_a_damaged_checkpoint(damage: Callable[[bytes], bytes], data: Path, run: Path) -> None:
    file = run / "last.pth.tar"
    file.write_bytes(damage(file.read_bytes()))
    refused(f"--resume {file} is damaged or is not a checkpoint", data, run, "--resume")


def test_weights_are_no_run(data: Path, run: Path) -> None:
    torch.save({"state_dict": {}}, run / "last.pth.tar")
    refused(
        "is not a checkpoint of a run, it lacks arch, optimizer, progress, settings: if it has only weights",
        data,
        run,
        "--resume",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet18"], "--resume: the checkpoint is of vit_tiny_patch16_224, but --model is resnet18"),
        (["--num-classes", "9"], "--resume: the checkpoint has 4 classes, expected 9; to fine-tune on other data"),
        (
            ["--batch-size", "4"],
            "this run was started with batch_size 8 (now 4), lr 7.8125e-06 (now 3.90625e-06), updates_per",
        ),
        (["--model-kwargs", "patch_size=8", "depth=1"], "this run was started with model_kwargs {"),
        (
            ["--seed", "1"],
            "started with seed 42 (now 1). It can only be resumed with the same settings: pass them",
        ),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(arguments: list[str], words: str, data: Path, run: Path) -> None:
    refused(words, data, run, "--resume", *arguments)


def test_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    more = write_folders(tmp_path / "more", train=9, val=1)
    refused("this run was started with updates_per_epoch 2 (now 4)", more, run, "--resume")


def test_a_finished_run_stays_as_it_is(data: Path, run: Path) -> None:
    before = (run / "last.pth.tar").read_bytes(), (run / "summary.csv").read_text()
    train(data, run, "--resume")
    assert ((run / "last.pth.tar").read_bytes(), (run / "summary.csv").read_text()) == before


def test_weights_to_begin_with(data: Path, finished: Path, tmp_path: Path) -> None:
    weights = torch.load(finished / "last.pth.tar", weights_only=True)["state_dict"]
    file = tmp_path / "weights.pth"
    initial = ("--initial-checkpoint", file)
    torch.save(weights, file)
    train(data, tmp_path / "same", *initial, "--lr", "0", "--warmup-lr", "0", "--min-lr", "0")
    kept = torch.load(tmp_path / "same" / "last.pth.tar", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[key], weights[key]) for key in weights)

    run = tmp_path / "run"
    few = write_folders(tmp_path / "few", train=4, val=1)
    for split in ("train", "val"):
        shutil.rmtree(few / split / "dog")
    words = f"--initial-checkpoint {file} has 4 classes, expected 3; --reset-classifier starts with a new classifier"
    refused(words, few, run, *initial)
    train(few, tmp_path / "three", *initial, "--reset-classifier", "--lr", "0", "--warmup-lr", "0", "--min-lr", "0")
    kept = torch.load(tmp_path / "three" / "last.pth.tar", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[key], weights[key]) for key in weights if not key.startswith("head."))
    assert kept["head.weight"].shape[0] == 3

    refused(
        "does not fit ResNet: missing: conv1.weight",
        data,
        run,
        *initial,
        "--model",
        "resnet18",
        "--model-kwargs",
    )
    refused(
        "does not fit VisionTransformer: different shape: pos_embed is (1, 17, 32), expected (1, 26, 32)",
        data,
        run,
        *initial,
        "--img-size",
        "40",
    )
    file.write_bytes(b"no weights")
    refused(f"--initial-checkpoint {file} cannot be read as a checkpoint: ", data, run, *initial)
    refused(
        f"--initial-checkpoint: there is no file '{tmp_path}/none.pth'",
        data,
        run,
        "--initial-checkpoint",
        tmp_path / "none.pth",
    )
    assert not run.exists()


def test_tensorboard(data: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(data, tmp_path / "run", "--tensorboard", "--log-interval", "1")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "events")).Reload()
    assert [event.step for event in events.Scalars("train/train_loss")] == [1, 2]
    assert {"summary/top1", "summary/top5", "summary/loss"} <= set(events.Tags()["scalars"])


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from imagenet.options import make_parser, parse

    monkeypatch.setenv("COLUMNS", "500")  # each description is one line
    with pytest.raises(SystemExit, match="0"):
        parse("what it does", ["--help"])
    shown = capsys.readouterr().out
    assert "what it does" in shown
    entries = dict(re.findall(r"^  (-\S+(?: \S+)*)(?:  +|\n {10,})(\S.*)$", shown, re.MULTILINE))
    assert len(entries) == len(re.findall(r"^  -", shown, re.MULTILINE))  # each has a description
    flags = {word.rstrip(",") for entry in entries for word in entry.split()}
    assert {f"--{name.replace('_', '-')}" for name in vars(make_parser("").parse_args([]))} <= flags
