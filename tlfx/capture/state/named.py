"""What the code of a forward reads: of all that it reaches, attributes whose names occur in that code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from tlfx.capture.describe import INTERNAL
from tlfx.capture.model_class import CHOSEN
from tlfx.capture.regions import FORWARD_HOOKS
from tlfx.capture.state.containers import ClassAttributes, Container, Globals, Mapping
from tlfx.capture.state.reach import Reach, names_in, strings_in

__all__ = ["NamedReach"]

_MANY = 10_000
"""A container with more items than this is told by its identity."""
_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})
_UNCALLED = _CONSTRUCTORS | {
    *("__del__", "__repr__", "__str__", "__doc__", "__module__", "__annotations__", "__dict__", "__weakref__"),
    *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__", "__qualname__"),
    *("__init_subclass__", "__class_getitem__"),
}
"""Attributes with two underscores that a forward does not read, unless it names them."""
_BY_STRING = frozenset({"getattr", "hasattr", "attrgetter", "methodcaller"})
_ALL = frozenset({"vars", "__dict__", "asdict", "astuple", "fields"})
"""Names by which code reads all attributes of an object."""
_Excludes = Callable[[Container, Any], bool]


class NamedReach(Reach):
    """The places that the code of a forward reads, in an order that depends on nothing but their contents.

    A trainer that a module refers to is not followed unless code of the forward names it: its state may change at
    every step. Code names what it looks up, and the words in its strings, since ``getattr`` may take them.
    """

    def __init__(
        self, model: nn.Module, arguments: Sequence[tuple[str, Any]], hooks: Collection[int], excludes: _Excludes
    ) -> None:
        """``arguments`` are objects that the forward is given; ``hooks`` are the identities of hooks that are a part of
        the graph; ``excludes`` tells places that do not count."""
        self.functions: list[FunctionType] = []
        self.named: list[tuple[Container, dict[Any, None]]] = []
        """Containers whose keys are names, and the keys that count."""
        self.numbers: dict[int, int] = {}
        """Numbers of values whose contents are followed, by identity."""
        self._own = {id(vars(module)) for module in model.modules()}
        self._constructed: set[int] = set()
        self._parts: tuple[str, ...] = ()
        self._hooks, self.excludes = hooks, excludes
        super().__init__([*model.named_modules(), *arguments])

    def is_own(self, container: Container) -> bool:
        """Whether a container holds the attributes of a module of the model."""
        return id(container.held) in self._own

    def _walk(self) -> None:
        self._names |= dict.fromkeys(("forward", CHOSEN))
        known: tuple[int, ...] = ()
        # code that is found later may name attributes of containers that are open already
        while known != (known := (len(self._names), len(self._parts), len(self._constructed), len(self.named))):
            for container, keys in self.named:
                self._open_named(container, keys)
            super()._walk()

    def _open_named(self, container: Container, keys: dict[Any, None]) -> None:
        if keys and isinstance(container, Globals):
            return  # all of its names are in code
        for key, value in container.items().items():
            if key not in keys and self._is_named(container, key) and not self.excludes(container, key):
                keys[key] = None
                self._add(container.name_of(key), value)

    def _is_named(self, container: Container, key: Any) -> bool:
        if isinstance(container, ClassAttributes) and key.startswith("__") and key.endswith("__"):
            if key in _CONSTRUCTORS:
                return id(container.held) in self._constructed
            return key in self._names or key not in _UNCALLED
        if not isinstance(container, Globals) and not _ALL.isdisjoint(self._names):
            return True
        return key in self._names or key.startswith(self._parts) or key.endswith(self._parts)

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, str) and value.isidentifier():  # getattr(self, self.kind)
            self._names[value] = None
        if isinstance(value, type):
            self._constructed.update(map(id, value.__mro__))
        super()._add(name, value)

    def _visit(self, name: str, value: Any) -> None:
        before = len(self.containers) + len(self.named)
        super()._visit(name, value)
        if len(self.containers) + len(self.named) > before and not isinstance(
            value, FunctionType | type | nn.Module | Tensor
        ):
            self.numbers[id(value)] = len(self.numbers)

    def _class_of(self, name: str, kind: type) -> None:
        super()._add(name, kind)

    def _attributes(self, container: Container) -> None:
        self.named.append((container, {}))

    def _keep(self, container: Container) -> None:
        items = container.items()
        size = sum(len(x) if isinstance(x, tuple | frozenset) else 1 for x in items.values())
        if size > _MANY:
            return
        self.containers.append(container)
        for key, value in items.items():
            if not self.excludes(container, key):
                self._add(container.name_of(key), value)

    def _module(self, path: str, module: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        attributes = Mapping(prefix, vars(module), hidden=INTERNAL)
        if id(vars(module)) in self._own:
            self._attributes(attributes)
        else:  # that of a module which is not registered has no other place where it is compared
            self._keep(attributes)
        for kind in ("_parameters", "_buffers"):
            for key, tensor in vars(module)[kind].items():
                if tensor is not None:  # one without attributes may be given some
                    self._attributes(Mapping(f"{prefix}{key}.", vars(tensor)))
        for kind in FORWARD_HOOKS:
            for number, hook in vars(module)[kind].items():
                if id(hook) in self._hooks:
                    self._add(f"{prefix}{kind}[{number}]", hook)
        self._class_of(path, type(module))

    def _function(self, name: str, function: FunctionType) -> None:
        super()._function(name, function)
        if not self._follows(str(function.__globals__.get("__name__"))):
            return
        self.functions.append(function)
        strings = list(dict.fromkeys(strings_in(function.__code__)))
        self._names |= dict.fromkeys(s for s in strings if s.isidentifier())
        if not _BY_STRING.isdisjoint(names_in(function.__code__)):  # getattr(self, f"forward_{kind}")
            parts = (s for s in strings if 0 < len(s) < 40)
            self._parts = tuple(dict.fromkeys((*self._parts, *parts)))
