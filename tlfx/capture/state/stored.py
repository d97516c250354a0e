"""State in a captured graph: nodes that write what the graph computes to the places where the forward puts it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from tlfx._torch import disable_dynamo, generator_key
from tlfx.capture.state.containers import ABSENT, Container
from tlfx.capture.state.reach import Reach
from tlfx.capture.state.snapshot import Change, describe_data, describe_types
from tlfx.capture.tensor_calls import RecordedHandle
from tlfx.capture.value_reads import ReadValues

__all__ = ["Stored", "Watched", "put_state", "store"]


class Watched:
    """The places that a forward changes, as far as its graph may depend on their values.

    ``is_stable`` says that the graph is the same in the state that a call leaves: values may then be those before or
    after the call, and places to which the graph writes tensors are compared by their other data only.
    """

    def __init__(self, changes: Sequence[Change] = (), is_stable: bool = False) -> None:
        self.is_stable = is_stable
        self._constants: list[tuple[Container, Any, Any]] = []
        self._values = ReadValues(())
        self._allowed = [
            (c.container, c.key, describe_data, [describe_data(c.before), describe_data(c.after)])
            if is_stable and c.computed
            else (c.container, c.key, describe_types, [describe_types(c.before), *([c.described] if is_stable else [])])
            for c in changes
        ]

    def watch_constants(
        self, roots: Iterable[tuple[str, Any]], constants: Iterable[Tensor | torch.Generator]
    ) -> set[int]:
        """Watch the places, reached from ``roots``, of tensors and generators that the graph holds itself, such as the
        entries of a dictionary: others may be put there. Returns the keys of those that have a place."""
        known = set(map(_key, constants))
        placed: set[int] = set()
        for container in Reach(roots).containers if known else ():
            for key, value in container.items().items():
                these = known.intersection(map(_key, value if isinstance(value, tuple) else (value,)))
                if these:
                    self._constants.append((container, key, value))
                    placed |= these
        return placed

    def watch_values(self, tensors: Iterable[Tensor]) -> None:
        """Watch the values of tensors that the forward reads as numbers."""
        self._values = ReadValues(tensors)

    def are_current(self) -> bool:
        """Whether all values are as they may be."""
        if not self._values.are_current():
            return False
        if not all(_is_same(c.items().get(key, ABSENT), value) for c, key, value in self._constants):
            return False
        return all(describe(c.items().get(key, ABSENT)) in allowed for c, key, describe, allowed in self._allowed)


def _key(x: Any) -> int:
    return generator_key(x) if isinstance(x, torch.Generator) else id(x)


def _is_same(one: Any, other: Any) -> bool:
    """Whether values are one object, or tuples of the same objects."""
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return one is other
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


class Stored(nn.Module):
    """The places that an aligned graph writes to, as a part of the graph's module."""

    def __init__(self, changes: Sequence[Change]) -> None:
        super().__init__()
        self.changes = tuple(changes)


@disable_dynamo  # it would write its own tensors, without data, while it traces
def store(stored: Stored, number: int, name: str, values: Sequence[Any]) -> None:
    """Write values to a place, as the forward does."""
    stored.changes[number].put(values)


torch.fx.node.has_side_effect(store)


def put_state(
    graph: Graph, path: str, changes: Sequence[Change], outputs: Sequence[Any], handles: Mapping[int, Node]
) -> None:
    """Nodes at the end of a graph that write what it computes, ``outputs`` and handles of hooks by number, to the
    places of ``Stored`` at a path."""
    rest = iter(outputs)
    with graph.inserting_before(graph.output_node()):
        stored = graph.get_attr(path)
        for number, change in enumerate(changes):
            values = tuple(handles[x.number] if isinstance(x, RecordedHandle) else next(rest) for x in change.computed)
            graph.call_function(store, (stored, number, change.name, values))
