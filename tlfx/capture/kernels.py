"""Kernels of attention inside a forward: nodes choose them and put the caller's back, as torch.nn.attention.sdpa_kernel
does. Which kernels the caller allows is not known before a call, so that what is put back is read at each call."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import attention

from tlfx._torch import ATTENTION_KERNELS, attention_kernels, disable_dynamo, set_attention_kernels
from tlfx.capture.marks import mark, marks_of
from tlfx.capture.surroundings import replaced

__all__ = ["place_kernels", "recorded_kernels"]


_READ, _CHOOSE, _RESTORE = _KINDS = ("kernels read", "kernels chosen", "kernels restored")
"""Kinds of marks; their data are whether priorities count, and the kernels that are chosen."""


class _Before(list[Any]):
    """The kernels before a context of sdpa_kernel, which its end restores; ``number`` is that of their mark."""

    number: int


@contextlib.contextmanager
def recorded_kernels() -> Iterator[None]:
    """Mark in the context where sdpa_kernel reads, chooses and restores kernels."""
    numbers = itertools.count()
    # sdpa_kernel looks both up in its module
    read, choose = (getattr(attention, name) for name in ATTENTION_KERNELS)

    def marked_read(with_priority: bool = False) -> list[Any]:
        before = _Before(read(with_priority))
        before.number = next(numbers)
        mark(_READ, before.number, (), with_priority)
        return before

    def marked_choice(kernels: Any, set_priority: bool = False) -> None:
        kind, number = (_RESTORE, kernels.number) if isinstance(kernels, _Before) else (_CHOOSE, -1)
        mark(kind, number, (), set_priority, *kernels)
        choose(kernels, set_priority)

    with contextlib.ExitStack() as stack:
        for name, marked in zip(ATTENTION_KERNELS, (marked_read, marked_choice), strict=True):
            stack.enter_context(replaced(attention, name, marked))
        yield


def place_kernels(graph: Graph) -> None:
    """Replace marks by nodes that read, choose and restore kernels."""
    before: dict[int, Node] = {}
    for node, (_, _, kind, number, (by_priority, *kernels)) in marks_of(graph, *_KINDS).items():
        with graph.inserting_before(node):
            if kind == _READ:
                before[number] = graph.call_function(read_kernels, (bool(by_priority),))
            else:
                chosen = before.pop(number) if kind == _RESTORE else tuple(kernels)
                graph.call_function(choose_kernels, (chosen, bool(by_priority)))
        graph.erase_node(node)


@disable_dynamo
def read_kernels(by_priority: bool) -> tuple[int, ...]:
    """The kernels of attention that are allowed, in the order of their priority if asked for."""
    return attention_kernels(by_priority)


@disable_dynamo
def choose_kernels(kernels: Sequence[int], by_priority: bool) -> None:
    """Allow some kernels of attention, and prefer them in their order if asked for."""
    set_attention_kernels(kernels, by_priority)


# otherwise eliminate_dead_code would erase them, which have no users
for _function in (read_kernels, choose_kernels):
    torch.fx.node.has_side_effect(_function)
