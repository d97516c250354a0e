"""The command line in new processes, and its answers to bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import tlfx_process

import tlfx as package
from tlfx.commands.cli import COMMANDS, main

HEAVY = ("torch", "timm", "torchvision", "numpy", "rich", "networkx")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, tlfx.commands.cli\n"
        f"try: tlfx.commands.cli.main({arguments!r})\n"
        f"finally: print('heavy:', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert f"usage: tlfx {command}" in out
    assert "--debug" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_version() -> None:
    assert tlfx_process("--version").stdout == f"tlfx {package.__version__}\n"


def test_an_error_sets_the_exit_status() -> None:
    done = tlfx_process("inspect", "test_vit", "--depth", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "tlfx inspect: --depth 0: expected 1 or more\n"


def test_error_is_a_message_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "vit_tiny_patch16_22"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("tlfx check: unknown timm model 'vit_tiny_patch16_22'; did you mean vit_tiny_")
    assert "Traceback" not in shown.err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "no_such_model_at_all", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ModelError" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["code", "test_vit", "--kwargs", "{depth: 2}"], "is not valid JSON"),
        (["code", "test_vit", "--kwargs", "[1]"], "expected a JSON object"),
        (["code", "test_vit", "--input-size", "big"], "expected H, HxW"),
        (["code", "test_vit", "--input-size", "96"], "takes images of 160x160, not 96x96"),
        (["check", "test_vit", "--input-size", "1x160x160"], "fails by itself on images of shape (3, 1, 160, 160)"),
        (["code", "test_vit", "--path", "/no/such/place"], "is not a directory"),
        (["zoo", "no_such_model*"], "no model matches"),
        (["zoo", "test_vit", "--memory", "lots"], "such as 8G"),
        (["zoo", "test_vit", "--jobs", "0"], "must be positive"),
        (["code", "test_"], "unknown timm model 'test_'; "),
        (["code", "test_byobne"], "did you mean test_byobnet"),
        (["code", "test_vi"], " names begin so: test_vit, test_vit2, "),
        (["code", "local-dir:/no/such/folder"], "local-dir:/no/such/folder cannot be built: "),
        (["bench", "test_vit", "--device", "gpu9"], "--device gpu9: Invalid device string: 'gpu9'"),
        (["bench", "test_vit", "--device", "xpu"], "--device xpu is not available; this machine has cpu"),
        (["show", "test_vit", "--pretrained", "--weights", "w.pt"], "--pretrained and --weights were both given"),
        (["show", "builtins:dict", "--pretrained"], "--pretrained: builtins:dict publishes no weights"),
        (["inspect", "test_vit", "--svg", f"{__file__}/x.svg"], "test_cli.py' is not a directory"),
        (["inspect", "test_vit", "--html", "."], "--html '.' cannot be written: it is a directory"),
        (["show", "test_vit", "-o", f"{__file__}/x.png"], "test_cli.py' is not a directory"),
        (["fluctuation", "test_vit", "--csv", f"{__file__}/x.csv"], "test_cli.py' is not a directory"),
        (["zoo", "test_vit", "-o", f"{__file__}/x.csv"], "test_cli.py' is not a directory"),
        (["zoo", "test_vit", "-o", "absent/x.csv"], "'absent' does not exist; create it first"),
        (["zoo", "test_vit", "-o", __file__], "is not a table of models, and tlfx zoo would replace it"),
        (
            ["inspect", "test_vit", "--module", "blokcs.*"],
            "--module 'blokcs.*' matches no module with nodes; similar names are ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"tlfx {arguments[0]}: ")
    assert message in captured.err


@pytest.mark.parametrize("arguments", [[], ["bake"], ["check"]], ids=" ".join)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: tlfx" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m tlfx rules --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == "[\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_full_disk_is_a_message(options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tlfx", "rules", *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == "tlfx rules: output: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_other_encodings_show_plain_characters(encoding: str) -> None:
    code = (
        "import sys; from tlfx.commands import output; output.prepare_streams()\n"
        "print('└ blocks.0–2 ×3  W·Y → λ ≈ █'); print('│ Σ … Y ← Y', file=sys.stderr)"
    )
    settings = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60, env=settings)
    expected = {
        "ascii": "` blocks.0-2 x3  W.Y > lambda ? #\n| sum ~ Y = Y\n",
        "cp1252": "` blocks.0–2 ×3  W·Y > lambda ? #\n| sum … Y = Y\n",
    }
    assert (done.stdout + done.stderr).decode(encoding) == expected[encoding]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["zoo", "test_vit"], ["code", "test_vit"], ["zoo", "torchvision:*"]])
def test_without_the_library_of_the_model(command: list[str]) -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('timm', 'torchvision'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Without())\n"
        f"from tlfx.commands.cli import main; sys.exit(main({command!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    library = "torchvision" if "torchvision:*" in command else "timm"
    assert done.returncode == 2
    assert f"needs {library} (pip install {library}): No module named '{library}" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_are_all_there() -> None:
    assert {name for name in package.__all__ if getattr(package, name) is not None} == set(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="'allign'"):
        package.allign  # type: ignore[attr-defined]  # noqa: B018


def test_public_modules_are_imported_at_their_first_use() -> None:
    code = (
        "import sys, tlfx\n"
        "assert not {'torch', 'numpy', 'rich'} & {*sys.modules}\n"
        "tlfx.mix.Mixup, tlfx.losses.BinaryCrossEntropy, tlfx.analysis.fidelity, tlfx.testing.check_rule\n"
        "tlfx.rules.rule, tlfx.assign.TargetAssigner, tlfx.integrations.timm.ClassificationTask\n"
        "names = {'mix', 'losses', 'analysis', 'integrations', 'testing', 'assign', 'rules'}\n"
        "assert names <= {*dir(tlfx)}, dir(tlfx)\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=Path(__file__).parents[1])
