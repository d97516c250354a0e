"""Attributes of a module as comparable values: data by content, everything else by identity."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlfx._torch import COMPILED

__all__ = ["ATOMS", "IGNORED", "INTERNAL", "Attributes", "describe"]

IGNORED = None
"""The description of tensors and of what holds tensors, which do not count: a forward left them there as results."""

ATOMS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.layout,
    enum.Enum,
    np.generic,
)
_PLAIN = frozenset((bool, int, float, str, type(None)))
_MANY = 10_000
"""An object from which more values than this can be reached is compared by identity."""

INTERNAL = frozenset(vars(nn.Module())) - {"training"} | {*COMPILED, "_tlfx", "_compile_kwargs"}
"""Attributes of every module, of torch or tlfx: what a forward depends on in them is compared separately. In the last,
Lightning notes how a model was compiled."""


def describe(value: Any) -> Any:
    """A description of a value that ``==`` compares without calling ``__eq__`` of tensors, arrays or user classes.

    An object is described by its attributes if all of them are data, else by its identity.

    >>> describe([1, 2]) == describe([1, 2]), describe(1) == describe(True), describe([torch.ones(1)]) is IGNORED
    (True, False, True)
    """
    return (type(value), value) if type(value) in _PLAIN else _Description().of(value)


class Attributes:
    """The attributes of a module as they are now; those whose names ``ignores`` accepts do not count."""

    def __init__(self, module: nn.Module, ignores: Callable[[str], bool] = lambda name: False) -> None:
        self.held = vars(module)
        self.described: dict[str, Any] = {}
        """Descriptions by name; an empty container counts once it holds anything."""
        self.containers: list[Any] = []
        """The lists, sets and dictionaries in all attributes, including those of plain objects."""
        self.results: set[str] = set()
        """The names of tensors and of what holds tensors."""
        self.ignored = {name for name in self.held if name not in INTERNAL and ignores(name)}
        for name, value in self.held.items():
            if name not in INTERNAL and name not in self.ignored:
                self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        description = _Description()
        described = description.of(value)
        if described is IGNORED:
            self.results.add(name)
            return
        self.containers += description.containers
        if not isinstance(value, list | dict | set) or value:
            self.described[name] = described


class _Description:
    """Describes one value, and collects the containers in it.

    Values may share objects, or refer to one another in circles: each object is described once.
    """

    def __init__(self, outer: _Description | None = None) -> None:
        self.containers: list[Any] = []
        self.is_data = True
        self._known: dict[int, tuple[Any, bool]] = {} if outer is None else outer._known
        self._order: dict[int, int] = {} if outer is None else outer._order

    def of(self, value: Any) -> Any:
        """The description of a value; IGNORED if it holds a tensor."""
        if isinstance(value, ATOMS):
            return type(value), value
        if isinstance(value, Tensor):
            return IGNORED
        if id(value) in self._known:
            described, is_data = self._known[id(value)]
            self.is_data &= is_data
            # two references to one object differ from two equal objects
            return described if described is IGNORED else ("again", self._order[id(value)])
        if id(value) in self._order or len(self._order) > _MANY:  # in a circle, or too large to be compared by content
            return self._identity(value)
        self._order[id(value)] = len(self._order)
        before, self.is_data = self.is_data, True
        described = self._of_compound(value)
        self._known[id(value)] = described, self.is_data
        self.is_data &= before
        return described

    def _of_compound(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._of_items(value, value.items())
        if isinstance(value, list | tuple):
            return self._of_items(value, enumerate(value))
        if isinstance(value, set | frozenset):
            # equal sets may iterate in different orders
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
        inner = _Description(self)
        attributes = {name: inner.of(x) for name, x in vars(value).items()}
        if not inner.is_data:
            return self._identity(value)
        if any(x is IGNORED for x in attributes.values()):
            return IGNORED
        self.containers += [*inner.containers, vars(value)]
        return type(value), tuple(attributes.items())

    def _identity(self, value: Any) -> Any:
        self.is_data = False
        return type(value), id(value)


def _may_be_data(value: Any) -> bool:
    """Whether a value is an object with attributes, of a class other than a module or a class of torch (the state of
    fully_shard refers to thousands of objects)."""
    own = type(value).__module__.partition(".")[0] != "torch"
    return own and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type) and not callable(value)
