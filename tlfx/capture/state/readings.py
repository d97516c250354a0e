"""Readings: what a captured forward has read besides the settings of its modules, compared before each call.

These are global variables, class attributes, closures, arrays, objects, and items of containers other than tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlfx.capture.describe import ATOMS, IGNORED, describe
from tlfx.capture.state.containers import (
    ABSENT,
    ClassAttributes,
    Container,
    Globals,
    Items,
    Mapping,
    Members,
    Numbers,
    Objects,
    Slots,
)
from tlfx.capture.state.named import NamedReach

__all__ = ["Readings"]

_Excludes = Callable[[Container, Any], bool]
_code_of = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")


class Readings:
    """A snapshot of the places that the code of a forward reads, except those that ``excludes`` tells.

    Tensors count by type only: a graph reads them at each call, or :class:`tlfx.capture.state.stored.Watched` holds
    them. Settings of modules without tensors are left to :class:`tlfx.capture.settings.ModelSettings`.
    """

    def __init__(
        self, model: nn.Module, arguments: Sequence[tuple[str, Any]], hooks: Collection[int], excludes: _Excludes
    ) -> None:
        """``arguments`` are objects that the forward is given; ``hooks`` are the identities of hooks that are a part of
        the graph."""
        self._model, self._arguments, self._hooks, self._excludes = model, arguments, hooks, excludes
        self._keep(self._read())

    def are_current(self) -> bool:
        """Whether nothing has changed. Compiled calls do not compare."""
        return torch.compiler.is_compiling() or self._are_identical() or self.change() is None

    def change(self) -> str | None:
        """The first place that differs, such as ``the global variable SCALE``; None if there is none."""
        known = self._changed_number()
        if known is not None:
            return known
        now = self._read()
        after = list(_described(now))
        if after != self._described:
            return _difference(dict(self._described), dict(after))
        self._keep(now, after)  # equal, but other objects: the next comparison is fast again
        return None

    def _read(self) -> NamedReach:
        return NamedReach(self._model, self._arguments, self._hooks, self._excludes)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the values, other than parameters and buffers of the model."""
        return list(self._tensors.values())

    def _keep(self, reach: NamedReach, described: list[tuple[str, Any]] | None = None) -> None:
        self._described = list(_described(reach)) if described is None else described
        by_key = [c for c in reach.containers if isinstance(c, Mapping)]
        places = [(c, key) for c, key, _ in _named_places(reach) if not isinstance(c, Slots)]
        places += [(c, key) for c in by_key for key in c.items() if not self._excludes(c, key)]
        self._places = list({(id(c.held), key): (c, key) for c, key in places}.values())
        self._holders = [_held(c) for c, _ in self._places]
        self._keys = [key for _, key in self._places]
        self._values = list(map(operator.getitem, self._holders, self._keys))
        whole = [c for c in reach.containers if not isinstance(c, Mapping) and not self._excludes(c, None)]
        self._lists = [c.held for c in whole if type(c) is Items]
        self._items = list(chain.from_iterable(self._lists))
        others = [(c, c.items()) for c in whole if type(c) is not Items]
        self._others = [(c, items, len(items)) for c, items in others]
        slots = [(c, keys) for c, keys in reach.named if isinstance(c, Slots)]
        for container, keys in slots:
            items = container.items()
            self._others.append((container, {key: items[key] for key in keys}, len(items)))
        dictionaries = (c for c, _ in reach.named if _is_dictionary(c))
        sized = {id(c.held): _held(c) for c in (*dictionaries, *by_key)}
        self._sized = [*sized.values(), *self._lists]
        self._sizes = list(map(len, self._sized))
        self._tensors = reach.tensors
        self._functions = reach.functions
        self._codes = list(chain.from_iterable(map(_code_of, self._functions)))

    def _are_identical(self) -> bool:
        """Whether all places hold the same objects."""
        try:
            return (
                # loops of map alone: this runs before every call
                list(map(len, self._sized)) == self._sizes
                and all(map(operator.is_, map(operator.getitem, self._holders, self._keys), self._values))
                and all(map(operator.is_, chain.from_iterable(self._lists), self._items))
                and all(map(operator.is_, chain.from_iterable(map(_code_of, self._functions)), self._codes))
                and all(_are_same(*other) for other in self._others)
            )
        except (KeyError, RuntimeError):  # a key is gone, or a container changes meanwhile
            return False

    def _changed_number(self) -> str | None:
        """The first place that holds other plain data: found without a walk."""
        for (container, key), holder, before in zip(self._places, self._holders, self._values, strict=True):
            now = holder[key] if key in holder else ABSENT  # noqa: SIM401 (a subclass may redefine get)
            is_data = now is not before and isinstance(now, ATOMS) and isinstance(before, ATOMS)
            if is_data and describe(now) != describe(before):
                return container.name_of(key)
        return None


def _is_dictionary(container: Container) -> bool:
    return isinstance(container, Mapping | Globals | ClassAttributes)


def _held(container: Container) -> Any:
    return vars(container.held) if isinstance(container, ClassAttributes) else container.held


def _are_same(container: Container, before: dict[Any, Any], size: int) -> bool:
    now = container.items()
    if isinstance(container, Numbers | Members):
        return now == before
    if isinstance(container, Objects):
        return len(now[None]) == len(before[None]) and all(map(operator.is_, now[None], before[None]))
    return len(now) == size and all(now.get(key, ABSENT) is value for key, value in before.items())


def _named_places(reach: NamedReach) -> Iterator[tuple[Container, Any, Any]]:
    """Attributes and variables, with their values; those of the model's modules only if they hold tensors."""
    for container, keys in reach.named:
        items = container.items()
        for key in keys:
            if not reach.is_own(container) or describe(items[key]) is IGNORED:
                yield container, key, items[key]


def _described(reach: NamedReach) -> Iterator[tuple[str, Any]]:
    """All places by name, with comparable descriptions of their values."""
    for container, key, value in _named_places(reach):
        yield container.name_of(key), _description(value, reach.numbers)
    for container in reach.containers:
        for key, value in container.items().items():
            described = _description(value, reach.numbers)
            # entries by size are caches, which calls of other sizes fill
            if not reach.excludes(container, key) and (
                key is None or isinstance(key, str) or not _is_tensor(described)
            ):
                yield container.name_of(key), described
    for function in reach.functions:
        yield f"the code of {function.__qualname__}", tuple(map(id, _code_of(function)))


_TENSOR = object()


def _description(value: Any, numbers: dict[int, int]) -> Any:
    """Data by content, tensors by type, values whose contents are places themselves by number, others by identity."""
    if isinstance(value, ATOMS):
        return type(value), value
    if isinstance(value, Tensor):
        return _TENSOR, value.shape, value.dtype, value.device, value.requires_grad
    if isinstance(value, tuple):
        return type(value), *(_description(x, numbers) for x in value)
    if isinstance(value, frozenset):
        return type(value), *(_description(x, numbers) for x in sorted(value, key=hash))
    if isinstance(value, np.ndarray) and id(value) in numbers:
        return type(value), value.dtype, value.shape
    return type(value), numbers.get(id(value), ("other", id(value)))


def _is_tensor(described: Any) -> bool:
    """Whether a description is that of a tensor, or a tuple of tensors."""
    return described[0] is _TENSOR or (issubclass(described[0], tuple) and all(map(_is_tensor, described[1:])))


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first name under which descriptions differ."""
    names = (name for name in (*before, *after) if before.get(name, ABSENT) != after.get(name, ABSENT))
    return next(names, "what its code reads")
