"""Checkpoints: calls under torch.utils.checkpoint, reentrant or not, are regions."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from tlfx._torch import checkpoint_generator_name, checkpointing
from tlfx.capture.region_recorder import RegionRecorder
from tlfx.capture.regions import Checkpoint

__all__ = ["recorded_checkpoints"]


@contextlib.contextmanager
def recorded_checkpoints(recorder: RegionRecorder) -> Iterator[None]:
    """Record calls under torch.utils.checkpoint, which run without it in the context."""
    name = checkpoint_generator_name()
    generator, function = getattr(checkpointing, name), checkpointing.CheckpointFunction
    try:  # torch.utils.checkpoint.checkpoint looks both up in its module
        setattr(checkpointing, name, _recorded(generator, recorder))
        checkpointing.CheckpointFunction = SimpleNamespace(apply=_recorded_reentrant(recorder))  # type: ignore[misc,assignment]
        yield
    finally:
        setattr(checkpointing, name, generator)
        checkpointing.CheckpointFunction = function  # type: ignore[misc]


def _recorded(original: Callable[..., Any], recorder: RegionRecorder) -> Callable[..., Any]:
    """Replaces the generator that checkpoints the code between its two steps."""
    signature = inspect.signature(original)

    def recorded(*args: Any, **kwargs: Any) -> Iterator[None]:
        given = signature.bind(*args, **kwargs).arguments
        options = {k: given[k] for k in ("preserve_rng_state", "context_fn") if k in given}
        region = Checkpoint(options={k: v for k, v in options.items() if v is not checkpointing.noop_context_fn})
        recorder.begin(region)
        yield
        recorder.end(region)

    return recorded


def _recorded_reentrant(recorder: RegionRecorder) -> Callable[..., Any]:
    """Replaces the autograd function of reentrant checkpoints."""

    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        region = Checkpoint(options={"preserve_rng_state": preserve_rng_state}, reentrant=True)
        recorder.begin(region, [x for x in args if isinstance(x, Tensor)])
        result = function(*args)
        recorder.end(region)
        return result

    return apply
