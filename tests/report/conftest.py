"""Reports of timm models, each made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import timm

from tlfx.report import Report, inspect


@functools.cache
def _report(name: str, **kwargs: Any) -> Report:
    return inspect(timm.create_model(name, **kwargs))


@pytest.fixture
def report_of() -> Callable[..., Report]:
    """report_of("deit_tiny_patch16_224", depth=2)"""
    return _report
