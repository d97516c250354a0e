"""The settings of a module, compared by operations that dynamo can trace."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from tlfx._torch import HOOKS
from tlfx.capture.describe import ATOMS, INTERNAL, Attributes

__all__ = ["TracedSettings"]


class TracedSettings:
    """A snapshot of the attributes, submodules and hooks of a module.

    torch.compile guards what the comparison reads: numbers, strings, flags and lists of them by value, everything else
    by identity. A compiled call does not notice changes inside an object.
    """

    def __init__(self, module: nn.Module, attributes: Attributes) -> None:
        held = attributes.held
        self.ignored = frozenset(attributes.ignored)
        named = {name: value for name, value in held.items() if name not in INTERNAL | self.ignored}
        self.module = module
        self.kind = type(module)
        self.values = {name: copy.copy(value) for name, value in named.items() if _is_value(value)}
        self.objects = {n: x for n, x in named.items() if n not in self.values and n not in attributes.results}
        self.parts = tuple(held["_modules"].items())
        self.hooks = tuple(tuple(held[kind]) for kind in HOOKS)

    def is_current(self) -> bool:
        """Whether all are unchanged; False also if this cannot tell."""
        held = vars(self.module)
        if type(self.module) is not self.kind or tuple(tuple(held[kind]) for kind in HOOKS) != self.hooks:
            return False
        parts = held["_modules"]
        if tuple(parts) != tuple([n for n, _ in self.parts]) or any(parts[n] is not m for n, m in self.parts):
            return False
        for name, value in self.values.items():
            if name not in held or _types(held[name]) != _types(value) or held[name] != value:
                return False
        for name, value in self.objects.items():
            if name not in held or held[name] is not value:
                return False
        known = {*self.values, *self.objects, *self.ignored, *INTERNAL}
        return all(name in known or _may_be_result(held[name]) for name in held)


def _is_value(value: Any) -> bool:
    return isinstance(value, ATOMS) or (isinstance(value, (tuple, list)) and all(isinstance(x, ATOMS) for x in value))


def _types(value: Any) -> tuple[type, ...]:
    return (type(value), *map(type, value)) if isinstance(value, (tuple, list)) else (type(value),)


def _may_be_result(value: Any) -> bool:
    return isinstance(value, (Tensor, tuple, list, dict))
