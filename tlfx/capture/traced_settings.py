"""The settings of a module, read so that torch.compile guards them."""

from __future__ import annotations

from typing import Any

from torch import nn

from tlfx._torch import HOOKS
from tlfx.capture.describe import ATOMS, INTERNAL, Attributes

__all__ = ["TracedSettings"]


class TracedSettings:
    """The places of the attributes, submodules and hooks of a module.

    torch.compile guards what dynamo traces a read of: numbers, strings, flags and lists of them by value, everything
    else by identity. A compiled call does not notice changes inside an object.
    """

    def __init__(self, module: nn.Module, attributes: Attributes) -> None:
        held = attributes.held
        named = {n: x for n, x in held.items() if n not in INTERNAL and n not in attributes.ignored}
        self.module = module
        self.kind = type(module)
        self.atoms = [name for name, value in named.items() if isinstance(value, ATOMS)]
        self.lists = [name for name, value in named.items() if _is_list(value)]
        others = named.keys() - {*self.atoms, *self.lists} - attributes.results
        self.objects = [(name, named[name]) for name in sorted(others)]
        self.parts = list(held["_modules"].items())
        self.hooked = [kind for kind in HOOKS if held[kind]]
        self.unhooked = [kind for kind in HOOKS if not held[kind]]

    def are_identical(self) -> bool:
        """Read all of them; whether the class, the submodules and the objects are those of the capture."""
        held = vars(self.module)
        parts = held["_modules"]
        # few operations: dynamo takes about 0.1 ms for each
        frozenset([held[name] for name in self.atoms])
        for name in self.lists:
            frozenset(held[name])
        for container in (held, parts, held["_parameters"], held["_buffers"], *[held[kind] for kind in self.hooked]):
            for _ in container:  # the names, which iteration guards
                break
        for kind in self.unhooked:
            if held[kind]:
                return False
        for name, value in self.objects:
            if held[name] is not value:
                return False
        for name, part in self.parts:
            if parts[name] is not part:
                return False
        return type(self.module) is self.kind


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(x, ATOMS) for x in value)
