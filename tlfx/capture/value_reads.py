"""Values of tensors that a forward reads as numbers: those of plain tensors are known while it is captured, and the
graph depends on them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import is_fake, version
from tlfx.capture.surroundings import package_of_caller, replaced

__all__ = ["ReadValues", "ValueRecorder"]

_FUNCTIONS = ("equal", "allclose", "is_nonzero")
_NAMES = (
    *("item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__complex__", "__index__"),
    *_FUNCTIONS,
)


class ValueRecorder:
    """Records the tensors with data that a forward reads as numbers, such as by ``float(self.scale)``."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record reads in the context."""
        with contextlib.ExitStack() as stack:
            for owner, names in ((Tensor, _NAMES), (torch, _FUNCTIONS)):
                for name in names:
                    stack.enter_context(replaced(owner, name, self._recorded(getattr(owner, name))))
            yield

    def _recorded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def read(*args: Any, **kwargs: Any) -> Any:
            if package_of_caller() != "torch":
                given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and not is_fake(x))
                self.tensors.update((id(x), x) for x in given)
            return original(*args, **kwargs)

        return read


class ReadValues:
    """Values of tensors, compared before each call; on devices where that would wait, only what is written in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        each = {id(x): x for x in tensors}.values()
        self._kept = [(x, x.detach().clone()) for x in each if x.device.type == "cpu"]
        self._versions = [(x, version(x)) for x in each if x.device.type != "cpu" and not x.is_inference()]

    def are_current(self) -> bool:
        """Whether all values are unchanged."""
        known = all(version(x) == before for x, before in self._versions)
        return known and all(_are_equal(x.detach(), kept) for x, kept in self._kept)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # NaN counts as equal to NaN
    return bool(((one == other) | ((one != one) & (other != other))).all())
