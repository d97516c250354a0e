"""What a forward can reach and change: attributes, lists, dictionaries, closures, globals that its code names, and
caches of functools.

The walk follows code of the user and of the libraries that the model's classes are from; it does not follow torch,
NumPy, the standard library or tlfx, whose state is not a model's."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from multiprocessing.sharedctypes import SynchronizedBase
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from tlfx._torch import HOOKS, is_fake
from tlfx.capture.describe import ATOMS, INTERNAL
from tlfx.capture.state.containers import (
    Bytes,
    Cell,
    ClassAttributes,
    Container,
    Globals,
    Items,
    Mapping,
    Members,
    Numbers,
    Objects,
    Slots,
    Variable,
)
from tlfx.capture.state.randomness import Generator

__all__ = ["OTHERS", "Reach", "names_in", "strings_in"]

_MOST = 200_000
"""Objects that are visited; a model that reaches more is not searched further."""
OTHERS = frozenset({"torch", "numpy", "tlfx", "tlfx_rules", *sys.stdlib_module_names})
"""Packages whose code is not a model's."""
_HOLDERS = frozenset({"argparse", "collections", "queue", "types", "weakref", "_thread"})
"""Packages of the standard library whose classes hold what users put there, such as types.SimpleNamespace."""
_WHOLE = frozenset({"collections", "queue", "weakref"})
"""Those of them whose attributes are not named by users, such as ``data`` of a UserDict."""
_KEYED: tuple[type, ...] = (dict, list, deque, set, tuple, frozenset)
# the base of all numbers of ctypes, and the type of what lru_cache returns: neither has a public name
_CNumber: Any = ctypes.c_int.__mro__[1]
_CACHE = type(functools.lru_cache(lambda: None))


class Reach:
    """All containers that can be reached from values, each with a name for messages, and caches of functools."""

    def __init__(self, roots: Iterable[tuple[str, Any]]) -> None:
        self.containers: list[Container] = []
        self.caches: list[Any] = []
        self.tensors: dict[int, Tensor] = {}
        """Tensors other than parameters and buffers, by identity."""
        self.parameters: dict[int, nn.Parameter] = {}
        """Parameters, registered or not, by identity."""
        self.generators: list[Generator] = []
        """Generators of random numbers of Python, NumPy or torch."""
        self.iterators: list[tuple[str, Iterator[Any]]] = []
        self._seen: set[int] = set()
        self._open: deque[tuple[str, Any]] = deque()
        self._packages: dict[str, bool] = {}
        self._names: dict[str, None] = {}
        """Names in all code that is reached, in their order."""
        self._modules: dict[ModuleType, int] = {}
        """Modules of Python that attributes and variables refer to, and how many of the names were looked up there."""
        for name, value in roots:
            self._packages |= {_package(kind.__module__): True for kind in type(value).__mro__}
            self._add(name, value)
        self._packages |= dict.fromkeys(OTHERS, False)
        self._walk()

    def _walk(self) -> None:
        while self._open and len(self._seen) < _MOST:
            self._visit(*self._open.popleft())
            if not self._open:
                self._open_modules()

    def _follows(self, module: str) -> bool:
        """Whether code of a module is followed: that of the packages of the model's classes, and of all that is not
        installed, since other installed packages (of tests, notebooks, logging) change their state at any time."""
        package = _package(module)
        if package not in self._packages:
            file = str(getattr(sys.modules.get(package), "__file__", None) or "")
            self._packages[package] = "site-packages" not in file and "dist-packages" not in file
        return self._packages[package]

    def _visit(self, name: str, value: Any) -> None:
        for kind, visit in self._VISITS:
            if isinstance(value, kind):
                getattr(self, visit)(name, value)
                # subclasses of containers may have attributes besides their contents
                if not isinstance(value, _KEYED):
                    return
                break
        package = _package(type(value).__module__)
        if package in OTHERS and package not in _HOLDERS:
            return
        if isinstance(getattr(value, "__dict__", None), dict):  # that of list[int] is not its own
            attributes = Mapping(f"{name}.", vars(value))
            (self._keep if package in _WHOLE else self._attributes)(attributes)
        slots = Slots(f"{name}.", value)
        if slots.names:
            self._attributes(slots)
        self._class_of(name, type(value))

    def _add(self, name: str, value: Any) -> None:
        """Visit a value later, unless it was seen or cannot hold anything."""
        if not isinstance(value, ATOMS) and id(value) not in self._seen:
            self._seen.add(id(value))
            self._open.append((name, value))

    def _keep(self, container: Container) -> None:
        self.containers.append(container)
        for key, value in container.items().items():
            self._add(container.name_of(key), value)

    def _attributes(self, container: Container) -> None:
        """Keep a container whose keys are names in code."""
        self._keep(container)

    def _class_of(self, name: str, kind: type) -> None:
        """Visit the class of a value later."""
        self._add(name, kind)

    def _module(self, path: str, module: nn.Module) -> None:
        own = vars(module)
        self._attributes(Mapping(f"{path}." if path else "", own, hidden=INTERNAL))
        prefix = f"{path}." if path else ""
        unopened = () if path else HOOKS  # those of the model itself run outside of its forward
        for name in ("_buffers", "_parameters", "_modules", *HOOKS):
            visit = self.containers.append if name in ("_parameters", "_modules", *unopened) else self._keep
            visit(Mapping(prefix, own[name]))
        self.parameters |= {id(x): x for x in own["_parameters"].values() if x is not None}
        self._class_of(path, type(module))

    def _class(self, name: str, kind: type) -> None:
        self._class_of(name, type(kind))
        for base in kind.__mro__:
            if not self._follows(base.__module__) or (id(base) in self._seen and base is not kind):
                continue
            self._seen.add(id(base))
            self._attributes(ClassAttributes(f"{base.__qualname__}.", base))

    def _function(self, name: str, function: FunctionType) -> None:
        if not self._follows(str(function.__globals__.get("__name__"))):
            self._inner_functions(name, function)
            return
        names = tuple(dict.fromkeys(names_in(function.__code__)))
        if "globals" in names:  # globals()["SCALE"]
            names += tuple(s for s in strings_in(function.__code__) if s not in names)
        self._names |= dict.fromkeys(names)
        self._attributes(Globals("the global variable ", function.__globals__, names))
        for imported in _imported(names, str(function.__globals__.get("__package__"))):
            self._variables(imported, names)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            self._cell(f"the variable {variable!r} around {function.__qualname__}", cell)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._add(f"a default value of {function.__qualname__}", value)
        self._attributes(Mapping(f"{function.__qualname__}.", vars(function)))

    def _inner_functions(self, name: str, function: FunctionType) -> None:
        """Visit functions that a library's function holds, such as one that ``torch.no_grad`` decorates."""
        is_own = _package(str(function.__globals__.get("__name__"))) == _package(__name__)  # a hook that is recorded
        for cell in () if is_own else function.__closure__ or ():
            held = Cell(name, cell).items().get(None)
            if isinstance(held, FunctionType | MethodType | functools.partial):
                self._add(name, held)

    def _open_modules(self) -> None:
        """Keep the variables of modules that any code names, also of modules in modules (``package.config.SCALE``)."""
        names = tuple(self._names)
        for module, looked_up in self._modules.items():
            self._modules[module] = len(names)
            self._variables(module, names[looked_up:])

    def _variables(self, module: ModuleType, names: tuple[str, ...]) -> None:
        """Keep the variables of a module of these names."""
        if names and self._follows(module.__name__):
            self._attributes(Globals(f"{module.__name__}.", vars(module), names))

    def _cell(self, name: str, cell: CellType) -> None:
        if id(cell) not in self._seen:
            self._seen.add(id(cell))
            self._keep(Cell(name, cell))

    def _method(self, name: str, method: MethodType) -> None:
        self._add(name, method.__self__)
        self._add(name, method.__func__)

    def _wrapped(self, name: str, value: Any) -> None:
        self._add(name, value.__func__)

    def _property(self, name: str, value: Any) -> None:
        for function in (value.fget, value.fset):
            self._add(name, function)

    def _partial(self, name: str, value: Any) -> None:
        for part in (value.func, *value.args, *value.keywords.values()):
            self._add(name, part)

    def _cached_property(self, name: str, value: functools.cached_property[Any]) -> None:
        self._add(name, value.func)

    def _cache(self, name: str, cache: Any) -> None:
        self.caches.append(cache)
        self._add(name, cache.__wrapped__)

    def _tuple(self, name: str, values: Iterable[Any]) -> None:
        for value in values:
            self._add(name, value)

    def _tensor(self, name: str, value: Tensor) -> None:
        if isinstance(value, nn.Parameter):
            self.parameters[id(value)] = value
        else:
            self.tensors[id(value)] = value
        if not is_fake(value):
            self._attributes(Mapping(f"{name}.", vars(value)))

    def _mapping(self, name: str, value: dict[Any, Any]) -> None:
        self._keep(Mapping(name, value, of_attributes=False))

    def _proxy(self, name: str, value: MappingProxyType[Any, Any]) -> None:
        for held in gc.get_referents(value):  # nothing else gives the dictionary
            self._add(name, held)

    def _items(self, name: str, value: Any) -> None:
        self._keep(Items(name, value))

    def _members(self, name: str, value: set[Any]) -> None:
        self._keep(Members(name, value))

    def _generator(self, name: str, value: Generator) -> None:
        self.generators.append(value)

    def _iterator(self, name: str, value: Iterator[Any]) -> None:
        self.iterators.append((name, value))

    def _note_module(self, name: str, value: ModuleType) -> None:
        self._modules[value] = 0

    def _numbers(self, name: str, value: np.ndarray[Any, Any]) -> None:
        if value.size <= _MOST and value.flags.writeable:
            self._keep(Objects(name, value) if value.dtype == object else Numbers(name, value))

    def _bytes(self, name: str, value: Any) -> None:
        self._keep(Bytes(name, value))

    def _shared(self, name: str, value: SynchronizedBase[Any]) -> None:
        self._add(name, value.get_obj())

    def _variable(self, name: str, value: ContextVar[Any]) -> None:
        self._keep(Variable(name, value))

    _VISITS: tuple[tuple[Any, str], ...] = (
        (Tensor, "_tensor"),
        (nn.Module, "_module"),
        (type, "_class"),
        (FunctionType, "_function"),
        (MethodType, "_method"),
        ((staticmethod, classmethod), "_wrapped"),
        (property, "_property"),
        ((functools.partial, functools.partialmethod), "_partial"),
        (functools.cached_property, "_cached_property"),
        (_CACHE, "_cache"),
        (dict, "_mapping"),
        ((list, deque), "_items"),
        (set, "_members"),
        ((tuple, frozenset), "_tuple"),
        (Generator, "_generator"),
        (np.ndarray, "_numbers"),
        ((bytearray, array, ctypes.Array, _CNumber), "_bytes"),
        (SynchronizedBase, "_shared"),
        (ContextVar, "_variable"),
        (MappingProxyType, "_proxy"),
        (ModuleType, "_note_module"),
        (Iterator, "_iterator"),
    )
    """Types of values, and the methods that visit them."""


def names_in(code: CodeType) -> Iterator[str]:
    """Names of variables and attributes in a function's code, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def strings_in(code: CodeType) -> Iterator[str]:
    """The strings in a function's code, inner functions included."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from strings_in(constant)
        for value in constant if isinstance(constant, tuple) else (constant,):
            if isinstance(value, str):
                yield value


def _imported(names: Iterable[str], package: str) -> list[ModuleType]:
    """Loaded modules that code imports where it runs."""
    modules = (sys.modules.get(name) or sys.modules.get(f"{package}.{name}") for name in names)
    return [module for module in modules if isinstance(module, ModuleType)]


def _package(module: Any) -> str:
    return str(module).partition(".")[0]  # a class of C may have a descriptor as its __module__
