"""Sizes that constants decide: a mask or repeats, in a buffer, a plain tensor or a literal, give the number of elements
that a forward selects.

torch.export gives such a size a symbol without a value. The symbol is set to the number here, and the graph depends on
the tensor that the number follows from."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tlfx._torch import is_fake, set_size, tree_leaves, version, without_dispatch_modes
from tlfx.capture.surroundings import package_of_caller, replaced
from tlfx.capture.value_reads import ValueRecorder
from tlfx.graph.nodes import hint

__all__ = ["KnownSizes"]

_BY_MASK = ((torch, "nonzero"), (Tensor, "nonzero"), (torch, "argwhere"), (torch, "where"), (Tensor, "__getitem__"))
_BY_REPEATS = ((torch, "repeat_interleave"), (Tensor, "repeat_interleave"))


class KnownSizes:
    """Sets sizes that follow from constants while a forward is captured.

    ``own`` are the model's parameters and buffers by path, ``stand_ins`` the tensors without data that stand for them.
    Those that a size follows from are noted in ``values``, as tensors that the forward reads as numbers.
    """

    def __init__(self, values: ValueRecorder, own: Mapping[str, Tensor], stand_ins: Mapping[str, Tensor]) -> None:
        self._values = values
        pairs = ((x, own[path]) for path, x in stand_ins.items() if path in own)
        self._own = {id(x): (real, version(x)) for x, real in pairs if not real.is_meta}
        self._literals: dict[int, tuple[Tensor, int, Any]] = {}

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Set sizes in the context."""
        with contextlib.ExitStack() as stack:
            for owner, name in _BY_MASK:
                stack.enter_context(replaced(owner, name, self._sized(getattr(owner, name), _count_of_mask)))
            for owner, name in _BY_REPEATS:
                stack.enter_context(replaced(owner, name, self._sized(getattr(owner, name), _sum_of_repeats)))
            stack.enter_context(replaced(torch, "tensor", self._literal(torch.tensor)))
            yield

    def _sized(self, original: Callable[..., Any], count: Callable[[Tensor], int | None]) -> Callable[..., Any]:
        @functools.wraps(original)
        def select(*args: Any, **kwargs: Any) -> Any:
            selected = original(*args, **kwargs)
            if package_of_caller() != "torch":
                self._set_sizes(selected, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)], count)
            return selected

        return select

    def _set_sizes(self, selected: Any, given: list[Tensor], count: Callable[[Tensor], int | None]) -> None:
        """Set the sizes without a value of what was selected: each is the count of the last tensor of those given."""
        tensors = [x for x in tree_leaves(selected) if isinstance(x, Tensor)]
        unknown = [size for x in tensors for size in x.shape if hint(size) is None]
        with without_dispatch_modes():
            known = self._known(given[-1]) if unknown else None
            number = None if known is None else count(known)
        if number is not None:
            for size in unknown:
                set_size(size, number)

    def _known(self, x: Tensor) -> Tensor | None:
        """The data of a tensor that the forward has not written to; None if they are not known."""
        if id(x) in self._literals:
            _, before, data = self._literals[id(x)]
            return torch.asarray(data) if version(x) == before else None
        real = x if not is_fake(x) else self._unwritten(x)
        if real is not None:
            self._values.tensors[id(real)] = real
        return real

    def _unwritten(self, stand_in: Tensor) -> Tensor | None:
        real, before = self._own.get(id(stand_in), (None, 0))
        return real if version(stand_in) == before else None

    def _literal(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def tensor(data: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(data, *args, **kwargs)
            if is_fake(made) and all(isinstance(x, bool | int) for x in tree_leaves(data)):
                self._literals[id(made)] = (made, version(made), data)  # holds the tensor, so that no other has its id
            return made

        return tensor


def _count_of_mask(mask: Tensor) -> int:
    """How many elements a mask selects."""
    return int(mask.count_nonzero())


def _sum_of_repeats(repeats: Tensor) -> int | None:
    """How many elements repeats give; None for one number for all elements."""
    return int(repeats.sum()) if repeats.numel() > 1 else None
