"""Checkpoints: calls under torch.utils.checkpoint are regions, whichever of its two kinds they use."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from torch.utils import checkpoint as checkpointing

from tlfx.capture.marks import Recorder
from tlfx.capture.regions import Checkpoint

__all__ = ["recorded_checkpoints"]


@contextlib.contextmanager
def recorded_checkpoints(recorder: Recorder) -> Iterator[None]:
    """While the context is open, calls under torch.utils.checkpoint are recorded, and run without it."""
    names = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    name = next(n for n in names if hasattr(checkpointing, n))
    generator, function = getattr(checkpointing, name), checkpointing.CheckpointFunction
    try:  # where the functions that everyone calls look them up
        setattr(checkpointing, name, _recorded(generator, recorder))
        checkpointing.CheckpointFunction = SimpleNamespace(apply=_recorded_reentrant(recorder))  # type: ignore[misc,assignment]
        yield
    finally:
        setattr(checkpointing, name, generator)
        checkpointing.CheckpointFunction = function  # type: ignore[misc]


def _recorded(original: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    """In place of the generator that checkpoints what runs between its steps."""
    signature = inspect.signature(original)

    def recorded(*args: Any, **kwargs: Any) -> Iterator[None]:
        given = signature.bind(*args, **kwargs).arguments
        options = {k: given[k] for k in ("preserve_rng_state", "context_fn") if k in given}
        region = Checkpoint(options={k: v for k, v in options.items() if v is not checkpointing.noop_context_fn})
        recorder.begin(region)
        yield
        recorder.end(region)

    return recorded


def _recorded_reentrant(recorder: Recorder) -> Callable[..., Any]:
    """In place of the autograd function that runs without gradients first."""

    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        region = Checkpoint(options={"preserve_rng_state": preserve_rng_state})
        recorder.begin(region)
        result = function(*args)
        recorder.end(region)
        return result

    return apply
