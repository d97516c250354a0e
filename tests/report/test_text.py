"""Reports as text, against golden files at a fixed width; TLFX_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import ReportOf, slow_except
from rich.cells import cell_len
from rich.console import Console

from tlfx.report.text import View

GOLDEN = Path(__file__).parent / "golden"
MODELS = {
    "deit": ("deit_tiny_patch16_224", {"depth": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 4), "num_heads": (3, 6), "drop_path_rate": 0.0}),
    "pvt_v2": ("pvt_v2_b0", {"depths": (2, 1, 1, 1)}),
    "mixer": ("mixer_s16_224", {}),
    "convnext": ("convnext_tiny", {"depths": (2, 1, 2, 1)}),
}


def printed(view: Any, width: int, **options: Any) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False, _environ={})
    with console.capture() as capture:
        console.print(view, **options)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


@pytest.mark.parametrize("name", slow_except(("deit",), MODELS))
def test_the_tree_reads_as_it_did(name: str, report_of: ReportOf) -> None:
    model, kwargs = MODELS[name]
    text = printed(report_of(model, **kwargs), 100)  # type: ignore[arg-type]
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("TLFX_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_lines_keep_to_the_width(width: int, report_of: ReportOf) -> None:
    report = report_of("deit_tiny_patch16_224", depth=3)
    lines = printed(View(report), width).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert any("blocks.0–2 ×3" in line for line in lines)


def test_closed_modules_tell_what_they_hold(report_of: ReportOf) -> None:
    text = printed(View(report_of("deit_tiny_patch16_224", depth=3), depth=1), 100)
    assert "├ blocks.0–2 ×3  Block  197 tokens × 192" in text
    assert "19 operators" not in text.split("blocks.0–2")[0]
    assert "1 spatial mixing, 4 channel mixing, 6 point-wise, 2 residual" in text


def test_the_flat_list_has_every_node(report_of: ReportOf) -> None:
    report = report_of("deit_tiny_patch16_224", depth=3)
    lines = printed(View(report, flat=True), 120).splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(report.nodes)]] == [n.name for n in report.nodes]


def test_colours_are_those_of_the_classes(report_of: ReportOf) -> None:
    console = Console(width=100, color_system="truecolor", force_terminal=True, _environ={})
    with console.capture() as capture:
        console.print(report_of("deit_tiny_patch16_224", depth=3))
    assert "\x1b[38;2;213;94;0mspatial mixing" in capture.get()
