"""`examples/paper.py`: its list, small versions of tables, commands of real runs, and pictures."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EXAMPLES
from imagefolder import write_folders
from matplotlib.figure import Figure
from PIL import Image

from tlfx.analysis.pairs import mixed, photo_pairs
from tlfx.analysis.pictures import draw_embeddings, draw_mixtures, draw_similarities
from tlfx.analysis.probe import Probe
from tlfx.analysis.similarity import similarity_share

ROOT = EXAMPLES.parent
TINY = ["--epochs", "1", "--train", "32", "--test", "20", "--batch-size", "16", "--device", "cpu"]


def run(*arguments: object) -> int:
    from paper import main

    return main([*map(str, arguments)])


def test_the_list_has_a_command_and_a_test_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    from reproduction.contents import CONTENTS

    names = [f"eq. {n}" for n in range(1, 14)] + [f"Table {n}" for n in range(1, 11)]
    assert [item.name for item in CONTENTS] == names + [f"figure {n}" for n in range(1, 9)]
    assert run("--list") == 0
    shown = capsys.readouterr().out
    for item in CONTENTS:
        assert item.name in shown
        assert item.what
        python, script, *_ = shlex.split(item.command)
        assert python == "python"
        assert (ROOT / script).is_file(), item.command
        assert (ROOT / item.test).is_file(), item.test


def test_every_command_of_the_list_is_accepted() -> None:
    from paper import parse
    from reproduction.contents import CONTENTS

    for item in CONTENTS:
        _, script, *arguments = shlex.split(item.command)
        if script == "examples/paper.py":
            options = parse(arguments)
            assert options.kind[:2].lower() == item.name[:2].lower()
            assert str(options.number) == item.name.split()[-1]


def test_every_equation_is_a_test() -> None:
    names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / "test_equations.py").read_text(encoding="utf-8"), re.M)
    for number in range(1, 14):
        assert any(f"equation_{number:02d}" in name for name in names)


def test_recipes_and_methods_of_tables_exist() -> None:
    from imagenet.options import parse
    from methods import Method
    from reproduction.printed import TABLES
    from reproduction.runs import command

    for table in TABLES.values():
        for row in table.rows:
            assert len(row.cells) == len(table.heads)
            assert len(row.paper) == len(table.figures)
            if row.digits:
                Method.parse(row.digits.split()[1])
            if row.recipe:
                words = command(row, Path("data"), Path("runs"), 1, Path("weights"), ["--workers", "0"])
                options = parse("", words[2:])
                told, aligned = f"{row.cells} {row.digits}", ("✓", "+TL-Align", "transmix", "aligned", "+TransMix")
                assert options.align == any(word in told for word in aligned)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| \n").split("|")]


@pytest.mark.slow
def test_a_small_table_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table 8 on 32 digits: measured figures, and those of the paper in a column that says so."""
    options = ("--output", tmp_path, "--markdown", tmp_path / "table.md", *TINY)
    assert run("table", "8", "--data", "digits", *options) == 0
    head, _, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert cells(head)[-4:] == ["parameters", "images/s", "digits, %", "paper: Top-1 Acc.(%)"]
    rows = [cells(line) for line in lines]
    assert [row[-1] for row in rows] == ["79.8", "80.1", "80.2", "80.3", "80.3", "80.6"]
    records = {file.parent.name: json.loads(file.read_text()) for file in tmp_path.rglob("0.json")}
    assert len(records) == 6
    names = ["plain", "aligned+layers=-1", "aligned+layers=1", "aligned+scale=64", "aligned+residual=skip", "aligned"]
    for row, name in zip(rows, names, strict=True):
        assert row[-2] == f"{100 * records[name]['result']['accuracy']:.1f}"
    assert "Table 8. Ablation of different TL-Align operations" in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pt")}
    assert run("table", "8", *options) == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.pt")} == before


def test_commands_of_the_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed without being started; what is finished is in the table, and what was interrupted is resumed."""
    done = tmp_path / "table7" / "table7_random_no-align"
    done.mkdir(parents=True)
    with (done / "summary.csv").open("w") as table:
        csv.writer(table).writerows([["epoch", "top1", "ema_top1"], [0, 1.5, ""], [1, 2.5, 2.25]])
    (done / "last.pth.tar").touch()
    options = ("--data-dir", tmp_path, "--output", tmp_path, "--print", "--nproc", "8")
    assert run("table", "7", *options, "--", "--amp-dtype", "bfloat16") == 0
    shown = capsys.readouterr().out
    commands = [line for line in shown.splitlines() if line.startswith("torchrun --nproc-per-node 8")]
    assert len(commands) == 9
    assert all("--amp-dtype bfloat16" in line for line in commands)
    assert [line for line in commands if line.endswith("--resume")] == [
        line for line in commands if "table7_random.yaml --no-align" in line
    ]
    assert "2.5" in next(line for line in shown.splitlines() if line.split()[:2] == ["Random", "×"])


def test_commands_after_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables 5 and 6: four data sets, and the metrics of five, for six DeiTs; DeiT-B is not attacked."""
    (tmp_path / "table6").mkdir()
    (tmp_path / "table6" / "deit_small_ImageNet-C_mce.json").write_text(json.dumps({"mce": 54.25}))
    (tmp_path / "table6" / "deit_tiny_val_top1.json").write_text(json.dumps({"top1": 71.75, "top5": 90.6}))
    (tmp_path / "table6" / "deit_tiny_val_attack.json").write_text(json.dumps({"top1": 71, "attack": {"top1": 6.5}}))
    made = tmp_path / "table.md"
    options = ("--data-dir", tmp_path, "--weights", tmp_path, "--output", tmp_path, "--print")
    assert run("table", "6", *options, "--markdown", made) == 0
    shown = capsys.readouterr().out
    commands = [line for line in shown.splitlines() if "evaluate.py" in line]
    assert len(commands) == 6 * 6 - 2 - 3
    assert sum("--attack autoattack" in line for line in commands) == 3
    rows = {line[0]: line[1:] for line in map(cells, made.read_text().splitlines())}
    assert rows["DeiT-T"][:7] == ["71.8", "90.6", "–", "–", "–", "–", "6.5"]
    assert rows["DeiT-T"][7:] == ["5.7M", "1.6G", "72.2", "91.3", "60.4", "7.7", "69.1", "34.1", "3.9"]
    assert rows["DeiT-S"][4] == "54.2"
    done = tmp_path / "table5" / "deit_small_aligned_cifar10"
    done.mkdir(parents=True)
    (done / "last.pth.tar").touch()
    assert run("table", "5", *options, "--nproc", "8") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("ResNet50", "ViT-B/16", "ViT-L/16"))
    commands = [line for line in shown.splitlines() if "train_imagenet.py" in line]
    assert len(commands) == 6 * 4
    assert all(line.startswith("torchrun --nproc-per-node 8 ") for line in commands)
    assert [line.split("--output ")[1].split()[0] for line in commands if "--resume" in line] == [str(done)]
    from imagenet.options import parse

    for line in commands:
        parse("", shlex.split(line)[4:])


@pytest.mark.parametrize(("number", "script", "rows"), [(3, "segment", 8), (4, "detect", 6)])
def test_commands_of_segmentation_and_detection(
    number: int, script: str, rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables 3 and 4: a run for each backbone that the script accepts; a finished one has figures."""
    from reproduction.dense import DETECTION, SEGMENTATION

    names = list((SEGMENTATION if number == 3 else DETECTION).values())
    done = tmp_path / f"table{number}" / "swin_small_aligned"
    done.mkdir(parents=True)
    with (done / "summary.csv").open("w") as file:
        csv.writer(file).writerows([names, [1.0] * len(names), [10.25 + place for place in range(len(names))]])
    (done / "last.pth.tar").touch()
    options = ("--data-dir", tmp_path, "--weights", tmp_path / "w", "--output", tmp_path, "--print", "--nproc", "8")
    made = tmp_path / "table.md"
    assert run("table", number, *options, "--markdown", made, "--", "--amp") == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("torchrun")]
    assert len(commands) == rows
    for _, _, processes, started, *words in commands:
        assert (processes, Path(started).name) == ("8", f"{script}.py")
        given = importlib.import_module(script).parse(words)
        assert Path(given.output).name == Path(given.backbone_checkpoint).stem
        assert Path(given.output).name.removesuffix("_aligned") == given.backbone
        assert given.amp
        assert (given.resume is not None) == (Path(given.output) == done)
    head, _, *lines = (cells(line) for line in made.read_text().splitlines())
    assert all(len(line) == len(head) for line in lines)
    [row] = [line for line in lines if line[0] == "Swin-S +TL-Align"]
    assert row[1 : 1 + len(names)] == [f"{10.25 + place:.1f}" for place in range(len(names))]
    assert (
        row[-len(names) :] == {3: ["48.0", "49.7", "59.5"], 4: ["52.2", "71.1", "56.7", "45.2", "68.4", "49.1"]}[number]
    )


def test_top_5_of_the_best_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table 1 prints both accuracies, of weights or of their average, whichever has the better top-1."""
    done = tmp_path / "table1" / "deit_tiny"
    done.mkdir(parents=True)
    with (done / "summary.csv").open("w") as file:
        columns = ["epoch", "top1", "top5", "ema_top1", "ema_top5"]
        csv.writer(file).writerows([columns, [0, 1.5, 9.5, "", ""], [1, 2.5, 4.5, 3.5, 6.5], [2, 3.0, 8.0, 1.0, 2.0]])
    options = ("--data-dir", tmp_path, "--weights", tmp_path, "--output", tmp_path, "--print")
    assert run("table", 1, *options, "--markdown", tmp_path / "table.md") == 0
    head, _, plain, aligned, *others = (cells(line) for line in (tmp_path / "table.md").read_text().splitlines())
    assert len(others) == 14
    assert head[:3] == ["Model", "Top-1(%)", "Top-5(%)"]
    assert (plain[:3], aligned[:3]) == (["DeiT-T", "–", "–"], ["+TL-Align", "3.5", "6.5"])


@pytest.mark.slow
def test_a_real_table_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All rows of Table 9 on folders of a few images, with a small model: trained, and then found finished."""
    data = write_folders(tmp_path / "data", train=8, val=2)
    small = ["--model", "vit_tiny_patch16_224", "--img-size", "32", "--epochs", "1", "--warmup-epochs", "0"]
    small += ["--cooldown-epochs", "0", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--aug-repeats", "1"]
    small += ["--model-kwargs", "depth=12", "embed_dim=24", "num_heads=3"]
    assert run("table", "9", "--data-dir", data, "--output", tmp_path / "runs", "--", *small) == 0
    files = list((tmp_path / "runs").rglob("summary.csv"))
    assert len(files) == 7
    assert "–" not in capsys.readouterr().out.split("paper: Top-1")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["table", "5", "--data-dir", "x"],
            "Table 5 starts from trained models: pass --weights with the folder of deit_tiny.pth, deit_tiny_",
        ),
        (["table", "4", "--data-dir", "x"], "swin_tiny.pth, swin_tiny_aligned.pth and so on"),
        (["table", "3"], "Table 3 has no small version: pass --data-dir and --weights"),
        (
            ["table", "6", "--data-dir", "x", "--weights", "x", "--print", "--nproc", "2"],
            "evaluate.py runs in one process; leave out --nproc",
        ),
        (
            ["table", "1", "--data-dir", "x", "--print"],
            "deit_base_finetune starts from published weights: pass --",
        ),
        (["figure", "5", "--models", "vit_nano"], "unknown timm model 'vit_nano'"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected equation, table or figure with a number, or --list"),
        (["table", "11"], "table 11: the paper has tables 1 to 10"),
        (["table", "8", "--", "--fsdp"], "flags after -- are for real runs: pass --data-dir"),
        (["table", "5", "--weights", "x"], "--weights of a table are for real runs: pass --data-dir"),
        (["table", "8", "--seeds", "0"], "expected at least 1 of --seeds, --jobs and --nproc"),
    ],
)
def test_command_lines_that_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_an_equation_runs_its_tests() -> None:
    """By the interpreter of this process, in the root of the project."""
    from paper import run_equation

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_ADDOPTS", "--collect-only")
        assert run_equation(13, None) == 0  # type: ignore[arg-type]
        assert run_equation(14, None) == 5  # type: ignore[arg-type] # pytest has collected none


def arrays(drawn: Figure) -> list[Any]:
    """What the axes of a figure show."""
    return [ax.images[0].get_array() for ax in drawn.axes if ax.images]


def probed() -> tuple[Any, Any, list[Any]]:
    """A small model with one pair, and its readings for the mixture and both images."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10)
    pair = photo_pairs(1, (160, 160), seed=55)
    readings, _ = Probe(model, (3, 160, 160), attention=False)(
        torch.cat((pair.mixed, pair.first, pair.second)), pair.mask
    )
    return model, pair, readings


def test_pictures_of_labels_and_similarities() -> None:
    """Figures 5, 6 and 8 show the labels of tokens, and the cosines whose maxima give λ."""
    _, pair, readings = probed()
    *_, original, aligned = arrays(draw_embeddings([("model", pair, readings[0], readings[-1])]))
    cells_of_mask = pair.mask[0, 0].unfold(0, 16, 16).unfold(1, 16, 16).mean((-2, -1))
    torch.testing.assert_close(torch.as_tensor(original), cells_of_mask)
    assert torch.equal(torch.as_tensor(aligned), readings[-1].map[0, ..., 0])
    drawn = draw_similarities("model", pair, readings[-1])
    share = float(similarity_share(readings[-1].read_tokens[0], *readings[-1].tokens[1:])[0])
    assert f"λ = {share:.3f}" in drawn.get_suptitle()


def test_pictures_of_mixtures() -> None:
    first, second = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    names = ("cutmix", "patches", "blocks")
    mixtures = {name: mixed(first, second, name, 0, 8) for name in names}
    shown = arrays(draw_mixtures(mixtures))
    assert len(shown) == 5
    for image, mixture in zip(shown[2:], mixtures.values(), strict=True):
        assert torch.equal(torch.as_tensor(image), mixture.mixed[0].permute(1, 2, 0))


def test_figure_7_is_a_file(tmp_path: Path) -> None:
    assert run("figure", "7", "--picture", tmp_path / "f.png") == 0
    with Image.open(tmp_path / "f.png") as image:
        assert image.size[0] > 3 * image.size[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["1", "3", "4", "5", "6", "8"])
def test_figures_of_a_small_model(number: str, tmp_path: Path) -> None:
    file = tmp_path / "f.png"
    assert run("figure", number, "--models", "test_vit", "--pairs", "1", "--picture", file) == 0
    assert file.stat().st_size > 5000


@pytest.mark.slow
def test_operations_of_several_models(capsys: pytest.CaptureFixture[str]) -> None:
    """Table 10: the operations of each model, by class."""
    assert run("table", 10, "--models", "test_vit", "test_resnet") == 0
    shown = capsys.readouterr().out
    assert shown.count("label rule") == 2
    assert "VisionTransformer" in shown
    assert "ResNet" in shown


@pytest.mark.parametrize("name", ["real", "runs", "corruptions"])
def test_examples_in_docstrings_of_the_reproduction(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"reproduction.{name}"))
    assert tried > 0
    assert failed == 0
