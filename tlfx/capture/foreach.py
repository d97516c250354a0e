"""Functions of torch that call an operator for each tensor of a list (``torch._foreach_add``): a capture records the
calls of the operator, which is what they do on a CPU. On other devices one kernel computes several tensors, and may
round otherwise: these calls stay as they are, and have no rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import foreach_functions
from tlfx.capture.surroundings import replaced

__all__ = ["recorded_for_each"]

_OTHER_NAMES: dict[str, Callable[..., Tensor]] = {
    "norm": torch.linalg.vector_norm,
    "maximum": torch.clamp_min,
    "minimum": torch.clamp_max,
}
"""The operators of functions that are named otherwise."""
_OPTIONS = {"alpha", "dtype", "non_blocking", "ord", "value"}
"""Keywords that such functions share with their operators."""


@contextlib.contextmanager
def recorded_for_each() -> Iterator[None]:
    """Call the operators of such functions in the context, one tensor after another."""
    with contextlib.ExitStack() as stack:
        for name in foreach_functions():
            operator = _operator(name.removeprefix("_foreach_"))
            if operator is not None:
                stack.enter_context(replaced(torch, name, _on_each(getattr(torch, name), operator)))
        yield


def _operator(name: str) -> Callable[..., Any] | None:
    """The operator that a function calls for each tensor, if torch has one of this name."""
    in_place = name.endswith("_")
    other = _OTHER_NAMES.get(name.removesuffix("_"))
    if other is not None:
        return getattr(Tensor, f"{other.__name__}_", None) if in_place else other
    return getattr(Tensor if in_place else torch, name, None)


def _on_each(function: Callable[..., Any], operator: Callable[..., Any]) -> Callable[..., Any]:
    takes_value = operator.__name__.startswith("addc")  # by keyword, where the function takes it by place too

    def on_one(*args: Any, **options: Any) -> Any:
        given = {**options, "value": args[3]} if takes_value and len(args) > 3 else options
        return operator(*(args[:3] if takes_value else args), **given)

    def on_each(*args: Any, **options: Any) -> Any:
        lists = [a for a in args if isinstance(a, list | tuple)]
        tensors = [x for part in lists for x in part if isinstance(x, Tensor)]
        if not tensors or any(not x.is_cpu for x in tensors) or not options.keys() <= _OPTIONS:
            return function(*args, **options)
        calls = zip(*(a if isinstance(a, list | tuple) else [a] * len(lists[0]) for a in args), strict=True)
        results = tuple(on_one(*call, **options) for call in calls)
        return lists[0] if results[0] is tensors[0] else results  # in place

    return on_each
