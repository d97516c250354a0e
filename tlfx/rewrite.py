"""Rewriting: label arithmetic is written into the captured graph, next to what it follows, and only as far as it is
read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map

from tlfx import runtime
from tlfx.label import MASK, Label, LabelTable, Rows, by_first_occurrence
from tlfx.outputs import OutputLabel
from tlfx.propagate import Propagation

__all__ = ["read_labels", "rewrite"]


def rewrite(found: Propagation) -> GraphModule:
    """The aligned graph: the inputs of the captured one and a mask in, its outputs and their labels out.

    Each label of an output is float32 of the output's shape with the class axis taken out and the channels put last.
    After them come the recorded labels, (batch, *positions, channels).
    """
    return _Writer(found).write()


def read_labels(
    table: LabelTable, outputs: Sequence[OutputLabel | None], recorded: Iterable[Tensor] = ()
) -> dict[int, Label]:
    """The labels that outputs and recorded rows depend on, by their place in the table, each restricted to the rows
    that are read."""
    needed = torch.zeros(table.rows, dtype=torch.bool)
    for rows in (*(o.rows for o in outputs if o is not None), *recorded):
        needed[rows] = True
    live: dict[int, Label] = {}
    for place in reversed(range(len(table.labels))):
        label = table.labels[place]
        rows = needed[label.first : label.first + label.size]
        if not bool(rows.any()):
            continue
        live[place] = label = label.restricted(rows)
        for operand in label.operands:
            needed[operand.ids] = True
    return live


class _Writer:
    """Writes labels into a copy of the captured graph."""

    def __init__(self, found: Propagation) -> None:
        self.found = found
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.outputs = self.graph.graph_copy(found.graph_module.graph, self.copies)
        self.root = nn.Module()
        self.live = read_labels(found.labels, found.outputs, found.recorded.rows.values())
        self.position = torch.full((found.labels.rows,), -1)
        self.written: dict[int, Node] = {}
        self.last: dict[Node, Node] = {}
        self.mask = self._add_mask()

    def write(self) -> GraphModule:
        """Write all live labels, then the outputs."""
        for place, label in sorted(self.live.items()):
            self._write(place, label)
        labels = tuple(self._output(o) if o is not None else None for o in self.found.outputs)
        recorded = tuple(self._rows(rows, self._end()) for rows in self.found.recorded.rows.values())
        self.graph.output((self.outputs, labels + recorded))
        self.graph.lint()
        source = self.found.graph_module
        for name, buffer in source.named_buffers(recurse=False):
            self.root.register_buffer(name, buffer, persistent=False)
        self.root._modules.update(source._modules)
        module = GraphModule(self.root, self.graph, class_name=f"Aligned{type(source).__name__}")
        module._modules = dict(source._modules)
        return module

    def _add_mask(self) -> Node:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        with self.graph.inserting_after(inputs[-1]):
            mask = self.graph.placeholder(MASK)
        for node in inputs:
            self.last[node] = mask
        return mask

    def _write(self, place: int, label: Label) -> None:
        assert label.after is not None
        after = self.copies.get(label.after) or self._end()  # the output itself is written last
        self.position[label.first : label.first + label.size] = label.position()
        args = tuple(self._operand(a, after) for a in label.args)
        kwargs = {k: self._operand(v, after) for k, v in label.kwargs.items()}
        self.written[place] = self._insert(after, label.function, args, kwargs, "label")

    def _operand(self, value: Any, after: Node) -> Any:
        if isinstance(value, Rows):
            return self._rows(value.ids, after)
        if isinstance(value, Tensor):
            return self._constant(value, "weights", after)
        if isinstance(value, str) and value == MASK:
            return self.mask
        return tree_map(lambda v: self.copies[v] if isinstance(v, Node) else v, value)

    def _rows(self, ids: Tensor, after: Node) -> Node:
        """Rows of labels in a shape; no index where they are all of a label in order."""
        owners = self.found.labels.owners(ids)
        places = [int(p) for p in _in_order(owners.flatten())]
        offset = torch.zeros(len(self.found.labels.labels), dtype=torch.int64)
        total = 0
        for place in places:
            offset[place] = total
            total += int(_count(self.live[place]))
        index = self.position[ids] + offset[owners]
        labels = [self.written[p] for p in places]
        if torch.equal(index.flatten(), torch.arange(total)):
            if len(labels) == 1 and ids.dim() == 1:
                return labels[0]
            return self._insert(after, runtime.gather, (labels, None, tuple(ids.shape)), {}, "rows")
        return self._insert(after, runtime.gather, (labels, self._constant(index, "index", after)), {}, "rows")

    def _output(self, output: OutputLabel) -> Node:
        end = self._end()
        rows = self._rows(output.rows, end)
        where = output.where
        return self._insert(end, runtime.output, (rows, where.axis, where.outer, where.inner), {}, "share")

    def _end(self) -> Node:
        node: Node = next(iter(reversed(self.graph.nodes)))
        return node

    def _insert(self, after: Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Node:
        with self.graph.inserting_after(self.last.get(after, after)):
            node = self.graph.create_node("call_function", function, args, kwargs, name=name)
        self.last[after] = node
        return node

    def _constant(self, tensor: Tensor, name: str, after: Node) -> Node:
        name = f"{name}_{len(self.root._buffers)}"
        device = self.found.device
        self.root.register_buffer(name, tensor.to(device), persistent=False)
        with self.graph.inserting_after(self.last.get(after, after)):
            node = self.graph.get_attr(name)
        self.last[after] = node
        return node


def _count(label: Label) -> int:
    return label.size if label.kept is None else int(label.kept.sum())


def _in_order(places: Tensor) -> list[int]:
    """Distinct places in the order of their first occurrence."""
    distinct, inverse = places.unique(return_inverse=True)
    return [int(p) for p in distinct[by_first_occurrence(inverse, len(distinct))]]
