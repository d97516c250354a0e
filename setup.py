"""The description of the package on an index: README.md, of whose links only those that work there stay links."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).parent / "README.md"
RELATIVE = r"\((?!https?://)[^)]*\)"


def description() -> str:
    """README.md without pictures, and with the text of links, that lie in the repository."""
    text = re.sub(r"!\[[^\]]*\]" + RELATIVE + r"\n*", "", README.read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]*)\]" + RELATIVE, r"\1", text)


setup(long_description=description(), long_description_content_type="text/markdown")
