"""Rules of files, mappings and installed plugins; conflicts, overrides and broken plugins."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command import TIMEOUT, tlfx
from torch import Tensor, nn

from tlfx import InputError, Operation, RuleConflictError, RuleError, UnknownOperatorError, align, inspect, use_rules
from tlfx.analysis.invariants import share
from tlfx.commands.cli import main
from tlfx.propagate.verbs import OpContext
from tlfx.rules import REGISTRY, rule
from tlfx.zoo import table

aten = torch.ops.aten

FILE = """
from __future__ import annotations

from dataclasses import dataclass

from tlfx.rules import rule


@dataclass
class Setting:
    steps: int = 1


@rule("tlfx_plugins::turned")
def turned(op, x):
    return op.remap(x, lambda m: m.roll(Setting().steps, 2))
"""


@torch.library.custom_op("tlfx_plugins::turned", mutates_args=())
def turned(x: Tensor) -> Tensor:
    """An operator that no plugin knows: rows of images go down by one."""
    return x.roll(1, 2)


@turned.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


OVERLOADS = torch.ops.tlfx_plugins.turned
turned.register_autograd(lambda ctx, grad: grad.roll(-1, 2), setup_context=lambda ctx, inputs, output: None)


class Net(nn.Module):
    """Four rows of patches, of which the first is read after a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return turned(self.stem(images))[:, :, 0].mean(2)


def moving(op: OpContext, x: Any) -> Any:
    return op.remap(x, lambda m: m.roll(1, 2))


def staying(op: OpContext, x: Any) -> Any:
    return op.pointwise(x)


IMAGES = torch.zeros(2, 3, 16, 16)
MASK = torch.zeros(2, 1, 16, 16)
MASK[:, :, -4:] = 1  # the last row of patches, which the turn brings to the top


def shares(model: nn.Module) -> list[float]:
    return share(model, IMAGES, MASK).flatten().tolist()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(FILE)
    return path


def test_a_file(file: Path) -> None:
    for source in (file, str(file)):
        with use_rules(source):
            assert shares(align(Net())) == [1.0, 1.0]
            origins = {r.name: r.origin for r in REGISTRY}
            assert origins["aten.linear"] == "tlfx_rules.contraction.linear"
            assert origins["tlfx_plugins.turned"] == "my_rules.turned"
    assert "my_rules" not in sys.modules


@pytest.mark.parametrize(
    "operator",
    [
        "tlfx_plugins::turned",
        "tlfx_plugins.turned",
        turned,
        torch.ops.tlfx_plugins.turned,
        torch.ops.tlfx_plugins.turned.default,
    ],
    ids=["name", "dotted", "custom_op", "packet", "overload"],
)
def test_a_mapping(operator: Any) -> None:
    with use_rules({operator: moving}):
        assert shares(align(Net())) == [1.0, 1.0]


def test_several_sources_and_blocks(file: Path) -> None:
    with use_rules(file, {"tlfx_plugins::other": staying}), use_rules({"tlfx_plugins::third": staying}):
        names = {r.name for r in REGISTRY}
        assert {"tlfx_plugins.turned", "tlfx_plugins.other", "tlfx_plugins.third"} <= names
    assert not {r.name for r in REGISTRY} & {"tlfx_plugins.turned", "tlfx_plugins.other", "tlfx_plugins.third"}


def test_in_force_only_in_the_block() -> None:
    model = align(Net())
    for rule_, expected in ((moving, 1.0), (staying, 0.0)):
        with use_rules({turned: rule_}):
            assert shares(model) == [expected, expected]
        with pytest.raises(UnknownOperatorError, match=r"no rule for the operator tlfx_plugins\.turned"):
            shares(model)


def test_a_model_of_known_operators_is_captured_anew_outside() -> None:
    model = align(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2)))
    before = shares(model)
    with use_rules({aten.flatten: lambda op, x, *axes: op.reduce(x, 2)}, override=True), pytest.raises(RuleError):
        shares(model)  # the rule gives another shape
    assert shares(model) == before


def test_conflicts_name_both_owners(file: Path) -> None:
    count = len(REGISTRY)
    with (
        pytest.raises(
            RuleConflictError, match=r"aten\.linear has two rules: tlfx_rules\.contraction\.linear and .*moving"
        ),
        use_rules({turned: moving, aten.linear: moving}),
    ):
        pass
    with pytest.raises(RuleConflictError, match=r"my_rules\.turned and my_rules\.turned"), use_rules(file, file):
        pass
    assert len(REGISTRY) == count
    assert REGISTRY.find(OVERLOADS.default) is None


def test_override() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU())
    before = inspect(net, IMAGES).counts
    with use_rules({aten.gelu: lambda op, x, **_: moving(op, x)}, override=True):
        assert inspect(net, IMAGES).counts["layout"] == before["layout"] + 1
    assert inspect(net, IMAGES).counts == before


def test_taken_back_after_an_error(file: Path) -> None:
    generation, count = REGISTRY.generation, len(REGISTRY)
    with pytest.raises(ZeroDivisionError), use_rules(file):
        1 / 0  # noqa: B018
    with pytest.raises(RuleError), use_rules(file, file.with_name("none.py")):
        pass
    with pytest.raises(InputError, match="expected a Python file or a mapping"), use_rules(file, 3):  # type: ignore[arg-type]
        pass
    assert (REGISTRY.generation, len(REGISTRY)) == (generation, count)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_fails_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(RuleError, match=f"broken.py cannot be loaded: {words}"), use_rules(path):
        pass


def test_no_file_of_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("")
    for path, words in ((tmp_path, "no file of rules at"), (tmp_path / "rules.txt", "is not a Python file")):
        with pytest.raises(RuleError, match=words), use_rules(path):
            pass


@pytest.mark.parametrize(
    ("operator", "function", "words"),
    [
        (3, staying, "expected an operator and a function"),
        ("a::b", 3, "expected an operator and a function"),
        (nn.ReLU(), staying, "a rule for a ReLU that exists: expected its class"),
    ],
)
def test_what_is_no_rule(operator: Any, function: Any, words: str) -> None:
    with pytest.raises(InputError, match=words), use_rules({operator: function}):
        pass


def test_a_rule_that_is_no_plain_function() -> None:
    with REGISTRY.restored():
        rule("tlfx_plugins::partly")(functools.partial(moving))
        entry = REGISTRY.find("tlfx_plugins.partly")
        assert entry is not None
        assert (entry.origin, entry.file) == ("functools.partial", None)


PLUGINS: Mapping[str, str] = {
    "sound": "from tlfx.rules.registry import rule\nrule('tlfx_plugins::sound')(lambda op, x: op.pointwise(x))",
    "broken": "import no_such_module",
    "conflicting": "from tlfx.rules.registry import rule\nrule('aten::linear')(lambda op, x, *rest: op.pointwise(x))",
    "overriding": "from tlfx.rules.registry import rule\n"
    "@rule('aten::linear', override=True)\ndef linear(op, x, *rest):\n    return op.pointwise(x)",
}


def with_plugins(folder: Path, names: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process for which these plugins are installed, the first of them found before the built-in one."""
    for name in names:
        (folder / f"{name}_plugin.py").write_text(PLUGINS[name])
        info = folder / f"{name}_dist-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}_dist\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[tlfx.rules]\n{name} = {name}_plugin\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)


@pytest.mark.slow
def test_plugins_besides_a_broken_one(tmp_path: Path) -> None:
    """A broken plugin is named and does not take the rest down; an override wins over what is installed after it."""
    code = "import sys; from tlfx.commands.cli import main; sys.exit(main(['rules', '--json']))"
    done = with_plugins(tmp_path, ["sound", "broken", "overriding"], code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rule plugin 'broken' (broken_plugin) cannot be imported: ModuleNotFoundError") == 1
    assert "fix or uninstall it" in done.stderr
    rows = {row["operator"]: row for row in json.loads(done.stdout)}
    assert (rows["tlfx_plugins.sound"]["plugin"], rows["tlfx_plugins.sound"]["package"]) == ("sound", "sound_dist 1.2")
    assert rows["aten.linear"]["rule"] == "overriding_plugin.linear"
    assert len(rows) > 100


@pytest.mark.slow
def test_plugins_that_conflict_are_named_at_every_use(tmp_path: Path) -> None:
    code = (
        "import torch, tlfx\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        tlfx.inspect(torch.nn.Conv2d(3, 4, 4), torch.zeros(2, 3, 8, 8))\n"
        "    except tlfx.RuleConflictError as error:\n"
        "        print(error)\n"
    )
    done = with_plugins(tmp_path, ["conflicting"], code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("aten.linear has two rules") == 2
    for owner in ("conflicting_plugin.<lambda>", "tlfx_rules.contraction.linear"):
        assert done.stdout.count(owner) == 2


@pytest.mark.slow
def test_an_override_wins_that_a_user_imports_first(tmp_path: Path) -> None:
    code = (
        "import overriding_plugin\n"
        "from tlfx.rules import REGISTRY\n"
        "print(REGISTRY.find('aten.linear').origin, len(REGISTRY) > 100)"
    )
    done = with_plugins(tmp_path, ["overriding"], code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["overriding_plugin.linear", "True"]


def test_rules_on_the_command_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "turning.py").write_text(f"from {__name__} import Net")
    of_model = ["turning:Net", "--path", str(tmp_path), "--input-size", "16"]
    assert main(["inspect", *of_model]) == 2
    assert "no rule for the operator tlfx_plugins.turned" in capsys.readouterr().err
    with_file = ["--json", "--rules", str(file)]
    assert main(["inspect", *of_model, *with_file]) == 0
    (node,) = [n for n in json.loads(capsys.readouterr().out)["nodes"] if n["operator"].startswith("tlfx_plugins")]
    assert node["class"] == Operation.LAYOUT.value
    assert main(["check", *of_model, *with_file]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["rules", "--missing", *of_model, *with_file]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["rules", *with_file]) == 0
    (row,) = [r for r in json.loads(capsys.readouterr().out) if r["operator"] == "tlfx_plugins.turned"]
    assert row == {"operator": "tlfx_plugins.turned", "rule": "my_rules.turned", "plugin": str(file), "package": None}
    assert main(["rules", "--rules", str(tmp_path / "none.py")]) == 2
    assert f"no file of rules at {tmp_path / 'none.py'}" in capsys.readouterr().err


@pytest.mark.slow
def test_rules_of_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "gelu.py"
    path.write_text(
        "import torch\nfrom tlfx.rules.registry import rule\n"
        "@rule(torch.ops.aten.gelu, override=True)\n"
        "def gelu(op, x, **options):\n    raise ValueError('the file is used')"
    )
    csv = tmp_path / "zoo.csv"
    done = tlfx("zoo", "test_vit", "--output", str(csv), "--rules", str(path), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    row = table.read(csv)["test_vit"]
    assert row["status"] != "ok"
    assert "the file is used" in row["reason"]


@pytest.mark.parametrize(
    ("result", "given"), [(None, "None"), (torch.zeros(3), "a Tensor"), ((), "a tuple"), (3, "an int")], ids=str
)
def test_a_rule_that_returns_no_value(result: Any, given: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU())
    words = rf"<lambda> returned {given}, expected a tlfx.propagate.Value for each tensor.* such as op.pointwise\(x\)"
    with use_rules({torch.ops.aten.gelu: lambda op, x, **_: result}, override=True):  # noqa: SIM117
        with pytest.raises(RuleError, match=words):
            inspect(model, torch.zeros(2, 3, 8, 8))
