"""Docstrings as Markdown: examples become blocks of code, and roles of Sphinx references to the API."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=^\s*$|\Z)", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`([\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = ROLE.sub(_reference, text)


def _reference(role: re.Match[str]) -> str:
    """A link where the site has a page for the name, code elsewhere."""
    return f'<autoref identifier="{role[1]}" optional><code>{role[1]}</code></autoref>'
