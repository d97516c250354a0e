"""Settings and fixtures of all tests."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
from helpers import ReportOf
from hypothesis import settings

from tlfx.report import Report, inspect

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")


@functools.cache
def _report(name: str, **kwargs: Any) -> Report:
    return inspect(timm.create_model(name, **kwargs))


@pytest.fixture
def report_of() -> ReportOf:
    """The report of a timm model, made once: report_of("deit_tiny_patch16_224", depth=2)"""
    return _report
