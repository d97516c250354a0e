"""``tlfx inspect`` as a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def tlfx(*arguments, status=0):
    command = [sys.executable, "-m", "tlfx", "inspect", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == status, done.stderr
    return done


def test_files_and_json_in_one_run(tmp_path):
    files = {form: tmp_path / f"model.{form}" for form in ("dot", "graphml", "svg", "html")}
    options = [text for form, file in files.items() for text in (f"--{form}", str(file))]
    data = json.loads(tlfx("test_vit", "--only", "spatial", "--json", *options).stdout)
    assert {n["class"] for n in data["nodes"]} == {"spatial_mix"}
    assert data["summary"]["spatial_mix"] == len(data["nodes"])
    starts = {"dot": "digraph", "graphml": "<?xml", "svg": "<svg", "html": "<!doctype html>"}
    assert all(files[form].read_text(encoding="utf-8").startswith(start) for form, start in starts.items())


def test_text_in_a_pipe_is_plain():
    text = tlfx("test_vit", "--module", "blocks.*").stdout
    assert "\x1b" not in text
    assert "spatial mixing" in text
    assert "patch_embed " not in text.partition("class ")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test_vitt"], "did you mean test_vit"),
        (["test_vit", "--only", "spatail"], "unknown class 'spatail'"),
        (["test_vit", "--module", "nowhere"], "no node of the model lies in these modules"),
        (["test_vit", "--depth", "0"], "--depth 0: expected 1 or more"),
        (["test_vit", "--svg", "/nowhere/x.svg"], "/nowhere/x.svg cannot be written"),
    ],
)
def test_bad_input_ends_with_a_message(arguments, message):
    done = tlfx(*arguments, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
