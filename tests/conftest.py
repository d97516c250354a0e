"""Settings and fixtures of all tests."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from helpers import ReportOf
from hypothesis import settings

from tlfx.capture.modes import autocast_depth
from tlfx.report import Report, inspect

# Without a deadline, because a busy machine is not a failure. ``make slow`` asks for many examples.
settings.register_profile("few", deadline=None, max_examples=16)
settings.register_profile("many", deadline=None, max_examples=100)
settings.load_profile("few")


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections, which a capture triggers by the hundred."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leaves_no_mode() -> Iterator[None]:
    """A mode that outlives its test changes the ones after it: an autocast that stays open keeps its cast weights."""
    yield
    assert autocast_depth() == 0
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@functools.cache
def _report(name: str, **kwargs: Any) -> Report:
    return inspect(timm.create_model(name, **kwargs))


@pytest.fixture
def report_of() -> ReportOf:
    """The report of a timm model, made once: report_of("deit_tiny_patch16_224", depth=2)"""
    return _report
