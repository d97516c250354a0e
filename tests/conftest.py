"""Settings and fixtures of all tests."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
from helpers import ReportOf
from hypothesis import settings

from tlfx.report import Report, inspect

# Without a deadline, because a busy machine is not a failure. ``make slow`` asks for many examples.
settings.register_profile("few", deadline=None, max_examples=40)
settings.register_profile("many", deadline=None, max_examples=100)
settings.load_profile("few")


@functools.cache
def _report(name: str, **kwargs: Any) -> Report:
    return inspect(timm.create_model(name, **kwargs))


@pytest.fixture
def report_of() -> ReportOf:
    """The report of a timm model, made once: report_of("deit_tiny_patch16_224", depth=2)"""
    return _report
