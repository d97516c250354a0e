"""The tree of modules of a graph, with repeated blocks folded into one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tlfx.report.data import NodeReport

__all__ = ["Group", "fold", "numbers", "tree"]

SMALLEST = 4
"""Smallest number of nodes of a block; numbered modules with fewer nodes are not folded."""


@dataclass
class Group:
    """A module with its nodes and submodules in order of execution.

    ``numbers`` are the numbers of all modules folded into this one, which is the first of them.
    """

    path: str
    kind: str
    items: list[Group | NodeReport] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Last part of the path, or the numbers of all folded modules."""
        last = self.path.rpartition(".")[2]
        return numbers(self.numbers) if len(self.numbers) > 1 else last

    @property
    def title(self) -> str:
        """The path with the numbers of all folded modules and their count.

        >>> Group("blocks.0", "Block", numbers=[0, 1, 2]).title
        'blocks.0–2 ×3'
        """
        parent = self.path.rpartition(".")[0]
        times = f" ×{len(self.numbers)}" if len(self.numbers) > 1 else ""
        return (f"{parent}.{self.name}" if parent else self.name) + times

    @property
    def nodes(self) -> Iterator[NodeReport]:
        """All nodes in this module and its submodules."""
        for item in self.items:
            if isinstance(item, Group):
                yield from item.nodes
            else:
                yield item

    @property
    def is_block(self) -> bool:
        """Whether this is a numbered module with enough nodes to be folded."""
        return self.path.rpartition(".")[2].isdigit() and sum(1 for _ in self.nodes) >= SMALLEST


def tree(nodes: Iterable[NodeReport], kinds: Mapping[str, str]) -> Group:
    """The tree of nodes by module, in order of execution; a module that runs in several parts appears once for each.

    ``kinds`` maps the path of every module to the name of its class.
    """
    root = Group("", kinds.get("", ""))
    for node in nodes:
        _descend(root, node.module, kinds).items.append(node)
    return root


def _descend(root: Group, path: str, kinds: Mapping[str, str]) -> Group:
    """The last group of the tree for a module; a new group if other nodes ran since."""
    group, below = root, path.split(".") if path else []
    for depth in range(1, len(below) + 1):
        inner = ".".join(below[:depth])
        last = group.items[-1] if group.items else None
        if not isinstance(last, Group) or last.path != inner:
            last = Group(inner, kinds.get(inner, ""))
            group.items.append(last)
        group = last
    return group


def fold(group: Group) -> Group:
    """Fold a tree: numbered siblings of equal structure become one group with the numbers of all.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> block = lambda: nn.Sequential(nn.GELU(), nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    >>> report = inspect(nn.Sequential(block(), block()))
    >>> [item.title for item in fold(tree(report.nodes, report.modules)).items if isinstance(item, Group)]
    ['0–1 ×2']
    """
    folded = Group(group.path, group.kind, numbers=group.numbers)
    seen: dict[Hashable, Group] = {}
    for item in group.items:
        if not isinstance(item, Group):
            folded.items.append(item)
            continue
        inner = fold(item)
        if not inner.is_block:
            folded.items.append(inner)
            continue
        number = int(inner.path.rpartition(".")[2])
        known = seen.setdefault((inner.kind, _structure(inner)), inner)
        known.numbers.append(number)
        if known is inner:
            folded.items.append(inner)
    return folded


def _structure(group: Group) -> Hashable:
    """A key that is equal for groups with equal blocks."""
    return tuple(
        (i.name, i.kind, tuple(i.numbers), _structure(i))
        if isinstance(i, Group)
        else (i.operator, i.operation, i.before, i.after, i.in_shapes, i.out_shapes)
        for i in group.items
    )


def numbers(values: Sequence[int]) -> str:
    """A short text for a sequence of numbers.

    >>> numbers([0, 1, 2, 3]), numbers([0, 2, 4]), numbers([1, 3, 5, 7, 9]), numbers([1, 2, 5])
    ('0–3', '0,2,4', '1,3…9', '1–2,5')
    """
    steps = {b - a for a, b in pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"{values[0]},{values[1]}…{values[-1]}"
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)
