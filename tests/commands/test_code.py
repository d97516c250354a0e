"""``tlfx code``: plain Python in a pipe, label lines highlighted on a terminal."""

from __future__ import annotations

import ast

import pytest
from command import tlfx

from tlfx.commands.code import LABEL_STYLE, RELEASED_STYLE, highlighted


def test_plain_code_in_a_pipe() -> None:
    done = tlfx("code", "test_resnet", "--input-size", "32")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    function = ast.parse(done.stdout).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert [a.arg for a in function.args.args] == ["self", "x", "mask"]
    assert "tlfx_runtime_pixels(mask, x)" in done.stdout
    assert "torch.ops.aten.conv2d.default(x, getattr(self._m." in done.stdout
    assert not any(line.partition(" = ")[2].startswith(("self._m.", "getattr(")) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_colours_where_there_are_any() -> None:
    arguments = ("code", "test_resnet", "--input-size", "32")
    coloured = tlfx(*arguments, FORCE_COLOR="1", TERM="xterm-256color", COLORTERM="truecolor")
    assert "\x1b[" in coloured.stdout
    assert "\x1b" not in tlfx(*arguments, "--no-color", FORCE_COLOR="1").stdout


def test_label_lines_stand_out() -> None:
    code = "conv = f(x);  x = None\nlabel_1 = g(conv);  conv = None\nreturn label_1"
    text = highlighted(code, {"label_1"})
    assert text.plain == code
    styled = {text.plain[s.start : s.end] for s in text.spans if s.style == LABEL_STYLE}
    assert styled == {"label_1 = g(conv);  conv = None"}
    released = [text.plain[s.start : s.end] for s in text.spans if s.style == RELEASED_STYLE]
    assert released == [";  x = None", ";  conv = None"]
