"""The description of the package, which an index shows without the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import prepare_metadata_for_build_wheel as make; make(sys.argv[1])"


def test_the_description_has_no_links_into_the_repository(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (metadata,) = tmp_path.glob("*/METADATA")
    message = message_from_string(metadata.read_text(encoding="utf-8"))
    text = message.get_payload()
    assert isinstance(text, str)
    assert message["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n## How it works\n" in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in readme.splitlines() if line.startswith("#")
    ]
