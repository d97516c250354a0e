"""Leaf modules: calls of modules that have a rule are regions, which propagation takes as single operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from tlfx._torch import tree_flatten, tree_leaves
from tlfx.capture.region_recorder import RegionRecorder
from tlfx.capture.regions import LeafCall
from tlfx.rules.registry import REGISTRY

__all__ = ["recorded_leaf_modules"]


@contextlib.contextmanager
def recorded_leaf_modules(model: nn.Module, recorder: RegionRecorder) -> Iterator[None]:
    """Record calls of modules with a rule, from the end of their pre-hooks to the start of their forward hooks."""
    calls: list[LeafCall] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        calls.append(LeafCall(subject=module, spec=spec))
        recorder.begin(calls[-1], leaves)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        recorder.end(calls.pop(), tree_leaves(output))

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if REGISTRY.find_class(type(module)) is not None:
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave, prepend=True).remove)
        yield
