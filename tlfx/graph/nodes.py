"""The origin of a node: module, source line and shapes, for messages and reports."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import Node

from tlfx._torch import tree_leaves
from tlfx.graph.aliasing import storage_of, written_storages
from tlfx.graph.constants import is_random

__all__ = ["computes_same", "describe", "hint", "is_inside", "module_path", "module_stack", "shapes", "sizes"]


def shapes(node: Node) -> list[tuple[int, ...]]:
    """Shapes of the tensors that a node computes, at the batch size of the example."""
    return [tuple(int(s) for s in size) for size in sizes(node)]


def sizes(node: Node) -> list[tuple[Any, ...]]:
    """The same, with None where a size depends on the data."""
    leaves = tree_leaves(node.meta.get("val"))
    return [tuple(hint(s) for s in leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]


def hint(size: Any) -> Any:
    """A size at the batch size of the example; None if it depends on the data."""
    if not isinstance(size, SymInt | SymFloat | SymBool):
        return size
    return size.node.maybe_as_int() if size.node.hint is None else size.node.hint  # a symbol that became a number


def module_stack(node: Node) -> list[tuple[str, Any]]:
    """The modules that a node was captured in as (path, class or name of it), the model itself (an empty path) first.

    The path of a repeated call of a module ends with ``@`` and its number.
    """
    return [(str(path), kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values()]


def module_path(node: Node) -> str:
    """Path of the module that a node was captured in, such as ``blocks.0.attn``."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def is_inside(path: str, pattern: str) -> bool:
    """Whether a module is one that a glob pattern matches, or is inside of one.

    >>> [is_inside(path, "blocks.*") for path in ("blocks.0.attn", "blocks.0", "head")]
    [True, True, False]
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def describe(node: Node) -> str:
    """The origin of a node: its name, module, source line, and the shapes of its inputs and outputs."""
    stack = module_stack(node)
    module = f"{stack[-1][0] or 'the model itself'} ({_class_name(stack[-1][1])})" if stack else "unknown"
    given = ", ".join(str(s) for n in node.all_input_nodes for s in sizes(n))
    made = ", ".join(str(s) for s in sizes(node)).replace("None", "?")
    return f"  node:   {node.name}\n  module: {module}\n  source: {_line(node)}\n  shapes: {given} -> {made}"


def _line(node: Node) -> str:
    """The innermost source line outside torch."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    # two lines for each frame: the place, then the code
    frames = [" ".join(pair) for pair in zip(lines[::2], lines[1::2], strict=False)]
    own = [frame for frame in frames if "/torch/" not in frame]
    return (own or frames or ["unknown"])[-1]


def _class_name(kind: Any) -> str:
    return (kind if isinstance(kind, str) else kind.__name__).rsplit(".", 1)[-1]


def computes_same(a: Node, b: Node) -> bool:
    """Whether two nodes are one, or apply the same operators to the same values: a forward computed a value twice, and
    did not write to what it is computed from in between."""
    pairs: list[tuple[Any, Any]] = [(a, b)]
    seen: set[tuple[Node, Node]] = set()  # each pair once, however many paths lead to it
    while pairs:
        one, other = pairs.pop()
        if not (isinstance(one, Node) and isinstance(other, Node)):
            if type(one) is not type(other) or one != other:
                return False
            continue
        if one is other or (one, other) in seen:
            continue
        if one.op != "call_function" or one.target is not other.target or is_random(one):
            return False
        if _written_between(one, other):
            return False
        seen.add((one, other))
        ones, others = (tree_leaves((n.args, n.kwargs)) for n in (one, other))
        if len(ones) != len(others):
            return False
        pairs += zip(ones, others, strict=True)
    return True


def _written_between(one: Node, other: Node) -> bool:
    """Whether a node between two nodes, in either order, writes to what one of them reads."""
    order = list(one.graph.nodes)
    first, last = sorted((order.index(one), order.index(other)))
    read = {storage_of(n) for node in (one, other) for n in node.all_input_nodes}
    return not read.isdisjoint(written_storages(order[first + 1 : last]))
