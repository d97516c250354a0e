"""The imports of the package: no circle among its modules, and no import from a higher layer.

The graph is read from the source, so that imports inside functions and under ``TYPE_CHECKING`` count too.
Only the table of ``tlfx/__init__.py`` is left out: it holds the public names, which are imported at their first use.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx  # type: ignore[import-untyped]
import pytest

import tlfx

ROOT = Path(__file__).parents[1] / "tlfx"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "operations", "policy"),
    ("system",),
    ("_torch",),
    ("mix",),
    ("runtime",),
    ("rules",),
    ("graph",),
    ("capture",),
    ("propagate",),
    ("rewrite",),
    ("trace",),
    ("calls",),
    ("aligned",),
    ("recording",),
    ("assign", "losses"),
    ("gaps",),
    ("report",),
    ("analysis",),
    ("testing",),
    ("zoo",),
    ("inspection",),
    ("integrations",),
    ("commands", "__main__"),
)
"""Modules and folders of the package, bottom up: an import may only point down, or stay inside one part."""
ONLY: dict[str, frozenset[str]] = {"mix": frozenset({"errors"})}
"""Parts that may import less than all that is below them."""
HEIGHTS = {part: height for height, layer in enumerate(LAYERS) for part in layer}


def module_name(file: Path) -> str:
    """tlfx/mix/target.py is tlfx.mix.target, and tlfx/mix/__init__.py is tlfx.mix."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The module or folder directly in the package: tlfx.mix.target is part of mix."""
    return module.split(".")[1]


FILES = {module_name(file): file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"}


def home(module: str, name: str) -> str:
    """The module that ``from module import name`` reads: a submodule, the home of a public name, or `module` itself."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    return str(getattr(tlfx, name).__module__) if module == "tlfx" and name in tlfx.__all__ else module


def imports(module: str) -> Iterator[str]:
    """The modules of the package that the source of `module` imports, anywhere in it."""
    file = FILES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            homes = (home(source, alias.name) for alias in node.names)
            yield from (imported for imported in homes if imported in FILES)


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    """An edge from every module to each module that it imports."""
    return nx.DiGraph((module, imported) for module in FILES for imported in imports(module))


def test_every_part_has_a_layer() -> None:
    assert {part_of(module) for module in FILES} <= set(HEIGHTS)


def test_no_circle(graph: nx.DiGraph) -> None:
    circles = [" → ".join([*circle, circle[0]]) for circle in nx.simple_cycles(graph, length_bound=6)]
    assert nx.is_directed_acyclic_graph(graph), "modules import each other:\n" + "\n".join(circles)


def test_imports_point_down(graph: nx.DiGraph) -> None:
    edges = [(one, other) for one, other in graph.edges if part_of(one) != part_of(other)]
    up = [f"{a} imports {b}" for a, b in edges if HEIGHTS[part_of(b)] > HEIGHTS[part_of(a)]]
    assert not up, "imports from a higher layer:\n" + "\n".join(up)
    wide = [f"{a} imports {b}" for a, b in edges if part_of(b) not in ONLY.get(part_of(a), HEIGHTS)]
    assert not wide, "imports from outside of what a part may import:\n" + "\n".join(wide)


def test_imports_are_read_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the top, inside a function, under TYPE_CHECKING, relative, and public names from their homes."""
    file = tmp_path / "target.py"
    file.write_text(
        "import tlfx.errors\nfrom . import cut\nfrom ..losses import SoftTargetLoss\nfrom tlfx import policy, align\n"
        "import torch\nif TYPE_CHECKING:\n    from tlfx.rules import registry\n"
        "def late():\n    from tlfx.report import inspect\n"
    )
    monkeypatch.setitem(FILES, "tlfx.mix.target", file)
    assert sorted(imports("tlfx.mix.target")) == [
        "tlfx.aligned", "tlfx.errors", "tlfx.losses", "tlfx.mix.cut", "tlfx.policy", "tlfx.report",
        "tlfx.rules.registry",
    ]  # fmt: skip
