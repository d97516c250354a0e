"""``tlfx rules``: where every rule comes from, and rules to begin with for operators that have none."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tlfx import align
from tlfx.analysis.missing import HEADER, missing
from tlfx.commands.cli import main
from tlfx.rules.registry import REGISTRY


@torch.library.custom_op("tlfx_tests::ripple", mutates_args=())
def ripple(x: Tensor, gain: float = 2.0) -> Tensor:
    return x * gain


@torch.library.custom_op("tlfx_tests::halves", mutates_args=())
def halves(x: Tensor) -> list[Tensor]:
    return [half.clone() for half in x.chunk(2, 1)]


@ripple.register_fake
def _(x: Tensor, gain: float = 2.0) -> Tensor:
    return torch.empty_like(x)


@halves.register_fake
def _(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(half) for half in x.chunk(2, 1)]


class Net(nn.Module):
    """Three calls of operators without a rule, one of them on a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.head = nn.Linear(2, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.ops.tlfx_tests.ripple(self.stem(images), 3.0)
        x = x * torch.ops.tlfx_tests.ripple(self.scale)
        first, _ = torch.ops.tlfx_tests.halves(x)
        return self.head(first.mean((2, 3)))


@pytest.fixture
def _registry_restored() -> Iterator[None]:
    with REGISTRY.restored():
        yield


def test_every_rule_has_its_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(REGISTRY)
    assert [r["operator"] for r in rows] == sorted(r["operator"] for r in rows)
    linear = next(r for r in rows if r["operator"] == "aten.linear")
    assert linear == {
        "operator": "aten.linear",
        "rule": "tlfx_rules.contraction.linear",
        "plugin": "builtin",
        "package": f"tlfx {importlib.metadata.version('tlfx')}",
    }


@pytest.mark.usefixtures("_registry_restored")
def test_a_rule_without_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    REGISTRY.add(torch.ops.tlfx_tests.ripple, lambda op, x, gain=2.0: op.pointwise(x))
    assert main(["rules"]) == 0
    assert main(["rules", "--json"]) == 0
    rows = json.loads("[" + capsys.readouterr().out.partition("\n[")[2])
    row = next(r for r in rows if r["operator"] == "tlfx_tests.ripple")
    assert (row["plugin"], row["package"]) == (__file__, None)


def test_operators_without_a_rule() -> None:
    first, second = missing(Net(), torch.zeros(2, 3, 8, 8))
    assert (first.name, len(first.nodes), first.places) == ("tlfx_tests.ripple", 1, ["the model itself"])
    assert second.name == "tlfx_tests.halves"
    assert first.skeleton() == (
        "@rule(torch.ops.tlfx_tests.ripple)\n"
        "def ripple(op: OpContext, x: Value, gain: Any = 2.0) -> Value:\n"
        '    """Called in the model itself: (2, 4, 2, 2) -> (2, 4, 2, 2)."""\n'
        "    return op.pointwise(x)\n"
    )


@pytest.mark.usefixtures("_registry_restored")
def test_skeletons_work_as_they_are() -> None:
    images = torch.zeros(2, 3, 8, 8)
    operators = missing(Net(), images)
    exec(compile("\n\n".join([HEADER, *(m.skeleton() for m in operators)]), "rules", "exec"), {})
    assert missing(Net(), images) == []
    align(Net(), example=images)


def test_missing_prints_code_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ripple_model.py").write_text(f"from {__name__} import Net\n")
    arguments = ["rules", "--missing", "ripple_model:Net", "--path", str(tmp_path), "--input-size", "8"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    compile(captured.out, "rules", "exec")
    assert "2 operators without a rule" in captured.err
    assert main([*arguments, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(r["operator"], r["calls"]) for r in rows] == [("tlfx_tests.ripple", 1), ("tlfx_tests.halves", 1)]


def test_nothing_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--missing", "test_resnet", "--input-size", "64"]) == 0
    assert capsys.readouterr().out == "test_resnet: every operator that receives image content has a rule\n"


def test_operators_that_match(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(pattern: str) -> list[str]:
        assert main(["rules", "--json", pattern]) == 0
        return [row["operator"] for row in json.loads(capsys.readouterr().out)]

    assert {"aten.softmax", "aten.log_softmax"} <= {*shown("softmax")}
    assert all("softmax" in name for name in shown("softmax"))
    assert all(name.startswith("aten.conv") for name in shown("aten.conv*"))
    assert len(shown("aten.conv*")) > 3
    assert main(["rules", "sofmax"]) == 2
    assert "no operator with a rule matches 'sofmax'; did you mean aten.softmax, " in capsys.readouterr().err
    assert main(["rules", "softmax", "--missing", "test_vit"]) == 2
    assert "'softmax' and --missing were both given" in capsys.readouterr().err
