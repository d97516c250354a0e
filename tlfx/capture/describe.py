"""Attributes of a module as comparable values: data by content, everything else by identity."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import COMPILED

__all__ = ["ATOMS", "IGNORED", "INTERNAL", "containers_in", "describe", "describe_attributes", "is_ignored"]

IGNORED = None
"""The description of tensors and of what holds tensors, which do not count: a forward left them there as results."""

ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, enum.Enum)
_PLAIN = frozenset((bool, int, float, str, type(None)))
_MANY = 10_000
"""An object from which more values than this can be reached is compared by identity."""

INTERNAL = frozenset(vars(nn.Module())) - {"training"} | {*COMPILED, "_tlfx"}
"""Attributes of every module, of torch or tlfx: what a forward depends on in them is compared separately."""


def describe(value: Any) -> Any:
    """A description of a value that ``==`` compares without calling ``__eq__`` of tensors, arrays or user classes.

    An object is described by its attributes if all of them are data, else by its identity.

    >>> describe([1, 2]) == describe([1, 2]), describe(1) == describe(True), describe([torch.ones(1)]) is IGNORED
    (True, False, True)
    """
    return (type(value), value) if type(value) in _PLAIN else _Description().of(value)


def describe_attributes(held: dict[str, Any]) -> dict[str, Any]:
    """Descriptions of the relevant attributes of a module, by name; an empty container counts once it holds
    anything."""
    named = {n: describe(value) for n, value in held.items() if n not in INTERNAL and not _is_empty(value)}
    return {name: described for name, described in named.items() if described is not IGNORED}


def is_ignored(name: str, value: Any) -> bool:
    """Whether an attribute of a module is a tensor or holds one."""
    return type(value) not in _PLAIN and name not in INTERNAL and describe(value) is IGNORED


def containers_in(name: str, value: Any) -> list[Any]:
    """The lists, sets and dictionaries in an attribute of a module, including those of plain objects."""
    if type(value) in _PLAIN or name in INTERNAL:
        return []
    description = _Description()
    description.of(value)
    return description.containers


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, dict, set)) and not value


class _Description:
    """Describes one value, and collects the containers in it."""

    def __init__(self) -> None:
        self.containers: list[Any] = []
        self.is_data = True
        self.count = 0
        self._inside: set[int] = set()

    def of(self, value: Any) -> Any:
        """The description of a value; IGNORED if it holds a tensor."""
        self.count += 1
        if isinstance(value, ATOMS):
            return type(value), value
        if isinstance(value, Tensor):
            return IGNORED
        if id(value) in self._inside:
            return self._identity(value)
        self._inside.add(id(value))
        described = self._of_compound(value)
        self._inside.discard(id(value))
        return described

    def _of_compound(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._of_items(value, value.items())
        if isinstance(value, list | tuple):
            return self._of_items(value, enumerate(value))
        if isinstance(value, set | frozenset):
            return self._of_items(value, ((x, x) for x in sorted(value, key=hash)))
        if _may_be_data(value):
            return self._of_object(value)
        return self._identity(value)

    def _of_items(self, value: Any, items: Iterable[tuple[Any, Any]]) -> Any:
        described = [(key, self.of(item)) for key, item in items]
        if any(item is IGNORED for _, item in described):
            return IGNORED
        if isinstance(value, list | dict | set):
            self.containers.append(value)
        return type(value), tuple(described)

    def _of_object(self, value: Any) -> Any:
        inner = _Description()
        inner._inside = self._inside
        attributes = {name: inner.of(x) for name, x in vars(value).items()}
        self.count += inner.count
        if not inner.is_data or self.count > _MANY:
            return self._identity(value)
        if any(x is IGNORED for x in attributes.values()):
            return IGNORED
        self.containers += [*inner.containers, vars(value)]
        return type(value), tuple(attributes.items())

    def _identity(self, value: Any) -> Any:
        self.is_data = False
        return type(value), id(value)


def _may_be_data(value: Any) -> bool:
    """Whether a value is an object with attributes other than a module, a class or a function."""
    return hasattr(value, "__dict__") and not isinstance(value, nn.Module | type) and not callable(value)
