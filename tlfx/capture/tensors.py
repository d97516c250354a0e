"""Types and sharing of the parameters and buffers of a model."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn

__all__ = ["TensorTypes"]


class TensorTypes:
    """Shapes, types and devices of all parameters and buffers of some modules, and which are the same tensor.

    Tensors may be replaced by others of the same type, as ``load_state_dict(assign=True)`` and functional_call do.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._described = [_describe(m) for m in modules]
        self._shared = _shared(modules)
        self._note()

    def _note(self) -> None:
        """Keep weak references to the tensors, so that replaced ones are freed."""
        held = [vars(m)[kind] for m in self._modules for kind in ("_parameters", "_buffers")]
        self._without: list[dict[str, Tensor | None]] = [x for x in held if not x]
        self._held: list[dict[str, Tensor | None]] = [x for x in held if x]
        self._names = list(chain.from_iterable(self._held))
        self._counts = list(map(len, self._held))
        self._known = [_nothing if x is None else weakref.ref(x) for x in _values(self._held)]
        self._empty = self._known.count(_nothing)

    def are_current(self) -> bool:
        """Whether all types and the sharing are unchanged; identical tensors are recognised at once."""
        return self._are_identical() or self.change({}) is None

    def _are_identical(self) -> bool:
        known = [reference() for reference in self._known]
        return (
            not any(self._without)
            and list(map(len, self._held)) == self._counts
            and list(chain.from_iterable(self._held)) == self._names
            and all(map(operator.is_, known, _values(self._held)))
            and sum(map(operator.is_, known, repeat(None))) == self._empty  # no tensor was freed
        )

    def change(self, paths: Mapping[nn.Module, str]) -> str | None:
        """The first tensor of another type, as ``path.name``; None if there is none."""
        for module, before in zip(self._modules, self._described, strict=True):
            now = _describe(module)
            if now != before:
                name = next(n for n in (*before, *now) if before.get(n, ()) != now.get(n, ()))
                return f"{paths.get(module, '')}.{name}".lstrip(".")
        if _shared(self._modules) != self._shared:
            return "tensors that modules share"
        self._note()  # other tensors of the same types
        return None


def _nothing() -> None:
    """Replaces a weak reference to a parameter that is None."""


def _values(held: Iterable[dict[str, Tensor | None]]) -> Iterable[Tensor | None]:
    return chain.from_iterable(map(dict.values, held))


def _describe(module: nn.Module) -> dict[str, Any]:
    own = {**module._parameters, **module._buffers}
    return {name: None if x is None else (x.shape, x.dtype, x.device) for name, x in own.items()}


def _shared(modules: Iterable[nn.Module]) -> tuple[int, ...]:
    """For each tensor the number of its first occurrence; empty if all differ."""
    first: dict[Tensor, int] = {}
    held = (x for m in modules for x in (*m._parameters.values(), *m._buffers.values()) if x is not None)
    places = tuple([first.setdefault(x, i) for i, x in enumerate(held)])
    return places if len(first) < len(places) else ()
