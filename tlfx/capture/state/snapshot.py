"""State: the side effects of a forward, such as changed attributes of modules, entries of dictionaries and closures.

The forward is captured between two snapshots of all containers that it reaches. Everything is restored; what has
changed is computed by the graph too, and put back by it at each aligned call."""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from types import GeneratorType
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, nn
from torch.utils.hooks import RemovableHandle

from tlfx._torch import TreeSpec, is_fake, tree_flatten, tree_map, tree_unflatten, version
from tlfx.capture.describe import ATOMS, IGNORED, describe
from tlfx.capture.state.containers import ABSENT, Container, Items
from tlfx.capture.state.randomness import RandomState, random_states_kept
from tlfx.capture.state.reach import Reach
from tlfx.capture.tensor_calls import RecordedHandle
from tlfx.graph.nodes import hint

__all__ = ["Change", "Snapshot", "are_equal", "describe_data", "describe_types", "state_kept"]


@dataclass(eq=False)
class Change:
    """A place whose value a forward has changed."""

    container: Container
    key: Any
    before: Any
    after: Any
    leaves: list[Any] = field(init=False)
    spec: TreeSpec = field(init=False)

    def __post_init__(self) -> None:
        value = list(self.after) if isinstance(self.container, Items) else self.after
        self.leaves, self.spec = tree_flatten(value)

    @property
    def name(self) -> str:
        """The place, such as ``blocks.0.attention`` or ``info['scale']``."""
        return self.container.name_of(self.key)

    @property
    def place(self) -> tuple[int, Any]:
        """What tells the place from others: the identity of what holds it, and the key."""
        return id(self.container.held), self.key

    @property
    def computed(self) -> list[Any]:
        """The tensors, sizes and handles of hooks that the graph computes."""
        return [x for x in self.leaves if is_computed(x)]

    @property
    def outputs(self) -> list[Any]:
        """The tensors and sizes among them."""
        return [x for x in self.computed if not isinstance(x, RecordedHandle)]

    @property
    def has_batch(self) -> bool:
        """Whether the shape of a tensor among them depends on a size that may vary."""
        return any(isinstance(s, SymInt) for x in self.outputs if isinstance(x, Tensor) for s in x.shape)

    def put(self, computed: Iterable[Any]) -> None:
        """Write the value, with these in place of what the graph computes."""
        given = iter(computed)
        leaves = [next(given) if is_computed(x) else x for x in self.leaves]
        self.container.put(self.key, tree_unflatten(leaves, self.spec))

    def put_example(self) -> None:
        """Write a value of the type that a call leaves: zeros for tensors."""
        if self.after is ABSENT:
            self.container.put(self.key, ABSENT)
        else:
            self.put(map(_example, self.computed))

    @property
    def described(self) -> Any:
        """The new value, comparable: types of what is computed, and data."""
        return describe_types(self.after)

    @property
    def keeps_type(self) -> bool:
        """Whether tensors replace tensors of the same type, and nothing else changes."""
        return bool(self.computed) and describe_types(self.before) == self.described


def is_computed(x: Any) -> bool:
    """Whether a value is a tensor, a number or a handle of a hook that a captured graph computes."""
    return isinstance(x, SymInt | SymFloat | SymBool | RecordedHandle) or (isinstance(x, Tensor) and is_fake(x))


_UNKNOWN: dict[type, Any] = {SymInt: 7919, SymFloat: 0.7919, SymBool: True}
"""Numbers that a graph computes: values that a model hardly starts from, so that a graph that reads them differs."""


def _example(x: Any) -> Any:
    """A value like one that a graph computes."""
    if isinstance(x, RecordedHandle):
        return RemovableHandle(OrderedDict())
    if not isinstance(x, Tensor):  # a number that is read from a tensor has no hint
        return _UNKNOWN[type(x)] if hint(x) is None else hint(x)
    return torch.zeros([hint(s) for s in x.shape], dtype=x.dtype, device=x.device)


def describe_types(value: Any) -> Any:
    """A comparable description: tensors by type, data by content, other objects by class."""

    def of(x: Any) -> Any:
        if isinstance(x, Tensor):
            return tuple(hint(s) for s in x.shape), x.dtype, x.device
        if isinstance(x, SymInt | SymFloat | SymBool):
            return type(hint(x)), hint(x)
        return (type(x), x) if isinstance(x, ATOMS) else RemovableHandle if isinstance(x, RecordedHandle) else type(x)

    leaves, spec = tree_flatten(value)
    return [of(x) for x in leaves], str(spec)


def describe_data(value: Any) -> Any:
    """A comparable description of the data in a value: all tensors, and all that a graph computes, are the same."""
    if isinstance(value, Tensor):
        return Tensor
    leaves, spec = tree_flatten(value)
    kept = [Tensor if isinstance(x, Tensor) or is_computed(x) else x for x in leaves]
    return [(type(x), x) if isinstance(x, ATOMS) else Tensor if x is Tensor else type(x) for x in kept], str(spec)


class Snapshot:
    """The contents of all containers that a forward reaches from ``roots``, the modules of a model and arguments."""

    def __init__(self, roots: Iterable[tuple[str, Any]]) -> None:
        self.reach = Reach(roots)
        self._before = [(container, container.items()) for container in self.reach.containers]
        self._iterators = [(name, x, _progress(x)) for name, x in self.reach.iterators]

    def changes(self, parameters: Mapping[int, nn.Parameter]) -> list[Change]:
        """The places whose values differ from those of the snapshot.

        ``parameters`` are those of the model, by the identities of the parameters without data that stand for them in a
        capture.
        """
        changes = []
        for container, before in self._before:
            now = container.items()
            for key in {**before, **now}:
                old, new = before.get(key, ABSENT), now.get(key, ABSENT)
                if old is new:
                    continue
                new = tree_map(lambda x: _without_stand_in(x, parameters), new)
                if not are_equal(old, new):
                    changes.append(Change(container, key, old, new))
        return changes

    def advanced(self) -> str | None:
        """The first iterator from which values were taken, which cannot be put back."""
        return next((name for name, x, before in self._iterators if _progress(x) != before), None)

    def restore(self) -> None:
        """Put the contents of all containers back."""
        for container, before in self._before:
            container.restore(before)


def _without_stand_in(x: Any, parameters: Mapping[int, nn.Parameter]) -> Any:
    """A parameter of the model, or a reference to it, in place of the parameter without data."""
    if isinstance(x, weakref.ref):
        parameter = parameters.get(id(x()))
        return x if parameter is None else weakref.ref(parameter)
    return parameters.get(id(x), x)


def _progress(iterator: Iterator[Any]) -> Any:
    """What changes when a value is taken from a generator, a counter or an iterator of a list."""
    if isinstance(iterator, GeneratorType):
        frame = iterator.gi_frame
        # the instruction at which a generator waits, and its variables
        return frame and (frame.f_lasti, repr(frame.f_locals))
    return repr(iterator), length_hint(iterator, -1)


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal data, or hold the same objects."""
    if one is ABSENT or other is ABSENT or type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(a is b or are_equal(a, b) for a, b in zip(one, other, strict=True))
    described = describe(one)
    return described is not IGNORED and bool(described == describe(other))


@contextlib.contextmanager
def state_kept(roots: Iterable[tuple[str, Any]]) -> Iterator[Callable[[], RandomState | None]]:
    """Restore the state that is reached from ``roots``, the modules of a model and arguments: containers, plain tensors
    that were written to, random states, and caches of functools.

    Yields a function that returns the random state that a forward has changed, if any; see
    :func:`random_states_kept`.
    """
    snapshot = Snapshot(roots)
    tensors = [(x, version(x), x.detach().clone()) for x in snapshot.reach.tensors.values() if _has_data(x)]
    caches = [(cache, cache.cache_info().misses) for cache in snapshot.reach.caches]
    try:
        with random_states_kept(snapshot.reach.generators) as changed_random_state:
            yield changed_random_state
    finally:
        snapshot.restore()
        for tensor, before, value in tensors:
            if version(tensor) != before:
                tensor.detach().copy_(value)
        for cache, misses in caches:
            if cache.cache_info().misses != misses:  # it may hold tensors without data
                cache.cache_clear()


def _has_data(x: Tensor) -> bool:
    return type(x) is Tensor and not x.is_meta and not x.is_inference() and x.layout is torch.strided
