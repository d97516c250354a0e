"""The settings of a model that a capture depends on: attributes of its modules, types of its parameters and buffers.

The dictionaries of all modules are compared with copies made at capture. Dictionary equality compares identities first,
so that this takes a fraction of a millisecond for hundreds of modules.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from tlfx._torch import HOOKS
from tlfx.capture.describe import IGNORED, Attributes, describe
from tlfx.capture.state.ignoring import is_ignored_state
from tlfx.capture.tensors import TensorTypes
from tlfx.capture.traced_settings import TracedSettings

__all__ = ["ModelSettings"]


class ModelSettings:
    """A snapshot of the settings of a model.

    Settings are: every attribute of every module, including lists, dictionaries and plain objects; classes, submodules,
    hooks and modes of modules; shapes, types, devices and sharing of parameters and buffers, but not their values.
    Attributes that hold tensors are results of a forward, and do not count. An object that holds modules, functions or
    other objects than plain data counts as changed only if another object replaces it.

    >>> model = nn.Sequential(nn.Dropout(0.1))
    >>> settings = ModelSettings(model)
    >>> settings.are_current(model)
    True
    >>> model[0].p = 0.2
    >>> settings.are_current(model), settings.change()
    (False, '0.p')
    """

    def __init__(self, model: nn.Module, ignore_state: Sequence[str] = ()) -> None:
        """Attributes that a pattern of ``ignore_state`` matches do not count."""
        self._ignore = tuple(ignore_state)
        self._paths = {module: path for path, module in model.named_modules()}
        self._modules = list(self._paths)
        self._tensors = TensorTypes(self._modules)
        self._own_parts = vars(model)["_modules"]
        self._keep(self._attributes())

    def are_current(self, model: nn.Module) -> bool:
        """Whether ``model`` is the captured model or a shallow copy of it, with equal settings."""
        if vars(model)["_modules"] is not self._own_parts:
            return False
        if not torch.compiler.is_compiling():
            return self._are_current()
        # compared now, and guarded by reads, which dynamo traces faster than it traces a comparison
        if not self._are_current_now():
            return False
        for settings in self._traced:  # noqa: SIM110 (dynamo traces a loop faster than a generator)
            if not settings.are_identical():
                return False
        return True

    def _are_current(self) -> bool:
        return (self._same_dictionaries() or self.change() is None) and self._tensors.are_current()

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _are_current_now(self) -> bool:
        """The same, which dynamo calls instead of tracing it."""
        return self._are_current()

    def change(self) -> str | None:
        """The first attribute that differs, as ``path.name``; None if all are equal."""
        now = self._attributes()
        for module, before in self._described.items():
            name = _difference(before, _describe(module, now[module]))
            if name is not None:
                return f"{self._paths[module]}.{name}".lstrip(".")
        self._keep(now)  # equal, but other objects: copying them makes the next comparison fast
        return self._tensors.change(self._paths)

    def _attributes(self) -> dict[nn.Module, Attributes]:
        if not self._ignore:
            return {module: Attributes(module) for module in self._modules}
        return {module: Attributes(module, partial(self._is_ignored, path)) for module, path in self._paths.items()}

    def _is_ignored(self, path: str, name: str) -> bool:
        return is_ignored_state(f"{path}.{name}", self._ignore)

    def _keep(self, now: Mapping[nn.Module, Attributes]) -> None:
        """Keep the attributes in three forms: described, copied for fast comparison, and as reads for dynamo."""
        self._described = {module: _describe(module, attributes) for module, attributes in now.items()}
        self._copy(now.values())
        self._traced = [TracedSettings(module, attributes) for module, attributes in now.items()]

    def _copy(self, now: Collection[Attributes]) -> None:
        """Copy what the fast comparison needs."""
        held, results = _containers(now)
        self._result_names = [x.results for x in now if x.results or x.ignored]
        self._empty = [x for x in held if not x]  # mostly hooks: testing for emptiness is cheaper than comparing
        self._held = [x for x in held if x]
        self._copies = [x.copy() for x in self._held]
        self._results = results
        self._beside_results = [_without(x, names) for x, names in results]
        self._parts = [own for own in (vars(m)["_modules"] for m in self._modules) if own]
        self._order = list(chain.from_iterable(self._parts))
        self._types = list(map(type, self._modules))
        places = [(x, key) for x in self._held for key in _keys(x)]
        places += [(x, name) for (x, _), kept in zip(results, self._beside_results, strict=True) for name in kept]
        self._numbers = _transposed([(x, k) for x, k in places if type(x[k]) in _NUMBERS and k != "training"])
        self._number_types = list(map(type, map(operator.getitem, *self._numbers)))
        self._tuples = _transposed([(x, k) for x, k in places if isinstance(x[k], tuple) and x[k]])
        self._tuple_values = list(map(operator.getitem, *self._tuples))

    def _same_dictionaries(self) -> bool:
        """Whether all dictionaries and lists are equal to their copies; False also if ``==`` cannot tell.

        Tensors are not compared: ``==`` of tensors computes, and waits for devices.
        """
        try:
            return (
                not any(self._empty)
                and self._held == self._copies
                and list(chain.from_iterable(self._parts)) == self._order
                and list(map(type, self._modules)) == self._types
                and self._same_beside_results()
                and list(map(type, map(operator.getitem, *self._numbers))) == self._number_types  # 1 == True == 1.0
                and all(map(operator.is_, map(operator.getitem, *self._tuples), self._tuple_values))
            )
        except Exception:  # an __eq__ that does not return a bool, such as NumPy's
            return False

    def _same_beside_results(self) -> bool:
        kept = zip(self._results, self._beside_results, strict=True)
        return all(_without(held, names) == copied for (held, names), copied in kept) and all(
            describe(held[name]) is IGNORED
            for (held, _), names in zip(self._results, self._result_names, strict=True)
            for name in names
            if name in held
        )


_NUMBERS = (int, float, bool)


def _describe(module: nn.Module, attributes: Attributes) -> dict[str, Any]:
    """Descriptions of all settings of a module, by name."""
    held = attributes.held
    parts = {f"_modules[{name!r}]": (i, id(part)) for i, (name, part) in enumerate(held["_modules"].items())}
    hooks = {f"{kind}[{key}]": id(hook) for kind in HOOKS for key, hook in held[kind].items()}
    return {**attributes.described, **parts, **hooks, "__class__": type(module)}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first name under which two descriptions differ."""
    if before == now:
        return None
    return next(name for name in (*before, *now) if before.get(name, IGNORED) != now.get(name, IGNORED))


def _containers(now: Iterable[Attributes]) -> tuple[list[Any], list[tuple[dict[str, Any], set[str]]]]:
    """The dictionaries, lists and sets to compare, and the dictionaries of modules with attributes that do not
    count, with the names of these."""
    containers: list[Any] = []
    results: list[tuple[dict[str, Any], set[str]]] = []
    for attributes in now:
        own = attributes.held
        if attributes.results or attributes.ignored:
            results.append((own, attributes.results | attributes.ignored))
        else:
            containers.append(own)
        containers += [*(own[kind] for kind in ("_modules", *HOOKS)), *attributes.containers]
    return list({id(x): x for x in containers}.values()), results


def _keys(container: Any) -> Iterable[Any]:
    """Keys of a dictionary or a list; a set has none."""
    return container if isinstance(container, dict) else range(len(container)) if isinstance(container, list) else ()


def _transposed(places: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Containers, and a key in each."""
    return [x for x, _ in places], [key for _, key in places]


def _without(held: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if name not in names}
