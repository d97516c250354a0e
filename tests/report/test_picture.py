"""Pictures: complete, self-contained, and drawn by a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from helpers import ReportOf

from tlfx.operations import Operation
from tlfx.report import Report
from tlfx.report.cards import cards
from tlfx.report.style import COLORS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def report(report_of: ReportOf) -> Report:
    return report_of("deit_tiny_patch16_224", depth=3)


def test_the_picture_shows_every_class_and_skip(report: Report) -> None:
    root = ET.fromstring(report.to_svg())
    fills = [r.get("fill") for r in root.iter(f"{SVG}rect") if r.get("rx") == "6"]
    # One block of three is drawn, beside the patch embedding, position embedding and head.
    assert fills.count(COLORS[Operation.SPATIAL_MIX]) == 1
    assert fills.count(COLORS[Operation.CHANNEL_MIX]) == 4 + 1
    assert fills.count(COLORS[Operation.RESIDUAL]) == 2
    assert len([p for p in root.iter(f"{SVG}path") if p.get("class") == "skip"]) == 2
    texts = ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    assert any(t.startswith("blocks.0–2 ×3") for t in texts)
    assert any(t.endswith(f"constant {report.counts['constant']}") for t in texts)


def test_a_projection_is_on_its_skip_connection(report_of: ReportOf) -> None:
    """The downsampling of a ResNet: the skip goes to it, and from it to the sum."""
    report = report_of("test_resnet")
    projected = [card for card in cards(report) if any("downsample" in row.text for row in card.rows)]
    assert len(projected) > 0
    module_of = {node.name: node.module for node in report.nodes}
    for card in projected:
        on_it = [i for i, row in enumerate(card.rows) for node in row.nodes if ".downsample." in node.module]
        (end,) = (i for i, row in enumerate(card.rows) if row.nodes and row.node.operation is Operation.RESIDUAL)
        assert sorted((skip.start, skip.end) for skip in card.skips) == [(-1, on_it[0]), (on_it[-1], end)]
        assert all(".downsample." in module_of[name] for name in card.rows[end].node.shortcut)


@pytest.mark.parametrize("form", ["to_svg", "to_html", "_repr_html_"])
def test_nothing_is_loaded_from_elsewhere(form: str, report: Report) -> None:
    text = getattr(report, form)().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|<script|<link|url\((?!#)|src=", text)


def test_the_page_lists_every_node(report: Report) -> None:
    text = report.to_html()
    assert all(f"<td>{node.name}</td>" in text for node in report.nodes)


def run_browser(page: Path, *options: str, dark: bool = False, width: int = 1100) -> str:
    """Open a page in Chromium without a window; returns what an option such as --dump-dom prints."""
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    flags += f"--disable-sync --no-first-run --hide-scrollbars --window-size={width},1000 "
    flags += f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(("form", "dark"), [("svg", False), ("html", False), ("html", True), ("svg", True)])
def test_a_browser_draws_it(form: str, dark: bool, report: Report, tmp_path: Path) -> None:
    from PIL import Image

    page, shot = tmp_path / f"report.{form}", tmp_path / "shot.png"
    page.write_text(getattr(report, f"to_{form}")(), encoding="utf-8")
    run_browser(page, f"--screenshot={shot}", dark=dark)
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    corner = int(picture[2, 2].max())
    assert corner < 50 if dark else corner > 200
    for operation in (Operation.SPATIAL_MIX, Operation.CHANNEL_MIX, Operation.RESIDUAL, Operation.AGGREGATION):
        color = [int(COLORS[operation][i : i + 2], 16) for i in (1, 3, 5)]
        assert int((np.abs(picture.reshape(-1, 3) - color).max(1) < 3).sum()) > 200


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_fits_a_window_of_800_pixels(report: Report, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    script = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    page.write_text(report.to_html().replace("</body>", script), encoding="utf-8")
    assert "<title>800</title>" in run_browser(page, "--dump-dom", width=800)
