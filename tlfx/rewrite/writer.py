"""Rewriting: label arithmetic is written into the captured graph, next to what it follows, and only as far as it is
read."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from tlfx import runtime
from tlfx.capture.regions import stay_in_regions
from tlfx.graph.shells import graph_module_of
from tlfx.propagate.labels import MASK, Label, LabelTable, Once, Rows, by_first_occurrence, digest, regular
from tlfx.propagate.outputs import OutputLabel
from tlfx.propagate.propagator import Propagation

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


def labels_of_the_mask(found: Propagation, live: Mapping[int, Label]) -> set[int]:
    """The labels, by their place in the table, that follow from the mask and from parameters alone, so that samples
    which share a mask share them too."""
    varied = _varied(found.graph_module.graph)
    shared: set[int] = set()
    for place, label in sorted(live.items()):
        owners = {int(p) for rows in label.operands for p in found.labels.owners(rows.ids).unique()}
        starts = any(isinstance(a, str) and a == MASK for a in label.args)
        by_sample = label.by_sample or label.kwargs.get("split") is not None or not varied.isdisjoint(label.nodes)
        if starts or (owners <= shared and not by_sample):
            shared.add(place)
    return shared


def _varied(graph: Graph) -> set[Node]:
    """Nodes that depend on what a model is called with, or on chance."""
    varied: set[Node] = set()
    for node in graph.nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "placeholder" or random or not varied.isdisjoint(node.all_input_nodes):
            varied.add(node)
    return varied


class _Writer:
    """Writes labels into a copy of the captured graph."""

    def __init__(self, found: Propagation) -> None:
        self.found = found
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.graph.graph_copy(found.graph_module.graph, self.copies)
        self.buffers: dict[str, Tensor] = {}
        self.live = read_labels(found.labels, found.outputs, found.recorded.rows.values())
        self.shared = labels_of_the_mask(found, self.live)
        self.position = torch.full((found.labels.rows,), -1)
        self.written: dict[int, Node] = {}
        self.known: dict[Hashable, Node] = {}
        self.constants: dict[Hashable, str] = {}
        self.last: dict[Node, Node] = {}
        self.mask = self._add_mask()

    def write(self) -> GraphModule:
        """Write all live labels, then the outputs."""
        for place, label in sorted(self.live.items()):
            self._write(place, label)
        labels = tuple(self._output(o) if o is not None else None for o in self.found.outputs)
        recorded = tuple(self._rows(rows, self._end(), for_each=True) for rows in self.found.recorded.rows.values())
        outputs = self.found.graph_module.graph.output_node().args[0]
        self.graph.output((map_arg(outputs, lambda n: self.copies[n]), labels + recorded))
        self.graph.lint()
        return self._module()

    def _module(self) -> GraphModule:
        source = self.found.graph_module
        buffers = {**dict(source.named_buffers(recurse=False)), **self.buffers}
        return graph_module_of(self.graph, source._modules, buffers, f"Aligned{type(source).__name__}")

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
        for_each = place not in self.shared
        args = tuple(self._operand(a, after, for_each) for a in label.args)
        kwargs = {k: self._operand(v, after, for_each) for k, v in label.kwargs.items()}
        node = self._insert(after, label.function, args, kwargs, "both" if label.instead else "label")
        self.written[place] = self._take_place(label.after, node) if label.instead else node

    def _take_place(self, original: Node, both: Node) -> Node:
        """Put the first of two results in the place of a node; the second is the label."""
        node = self.copies[original]
        value, label = (self._insert(node, operator.getitem, (both, i), {}, n) for i, n in enumerate(("own", "label")))
        value.meta, name = node.meta, node.name
        node.replace_all_uses_with(value)
        self.last[value] = self.last.pop(node)
        self.copies[original] = value
        self.graph.erase_node(node)
        value.name = name
        return label

    def _operand(self, value: Any, after: Node, for_each: bool) -> Any:
        if isinstance(value, Rows):
            return self._rows(value.ids, after, for_each)
        if isinstance(value, Once):
            return self._once(value, after)
        if isinstance(value, Tensor):
            return self._constant(value, "weights", after)
        if isinstance(value, str) and value == MASK:
            return self.mask
        return tree_map(lambda v: self.copies[v] if isinstance(v, Node) else v, value)

    def _once(self, value: Once, after: Node) -> Node:
        """What is computed of a parameter, the first time it is read."""
        key = (value.function, value.node.target if value.node.op == "get_attr" else value.node)
        if key not in self.known:
            self.known[key] = self._insert(after, value.function, (self.copies[value.node],), value.kwargs, "once")
        return self.known[key]

    def _rows(self, ids: Tensor, after: Node, for_each: bool) -> Node:
        """Rows of labels in a shape: for each sample, or once for all that share a mask."""
        key = ("rows", digest(ids), for_each)
        if key not in self.known:
            self.known[key] = self._read(ids, after, for_each)
        return self.known[key]

    def _read(self, ids: Tensor, after: Node, for_each: bool) -> Node:
        """A view of a label where its rows lie at regular distances, else a copy by index."""
        owners = self.found.labels.owners(ids)
        places = _in_order(owners.flatten())
        offset = torch.zeros(len(self.found.labels.labels), dtype=torch.int64)
        offset[places] = torch.tensor([0, *itertools.accumulate(self.live[p].count for p in places[:-1])])
        index = self.position[ids] + offset[owners]
        labels = [self._spread(p, after) if for_each and p in self.shared else self.written[p] for p in places]
        loops = regular(index)
        if torch.equal(index.flatten(), torch.arange(sum(self.live[p].count for p in places))):
            if len(labels) == 1 and ids.dim() == 1:
                return labels[0]
            return self._insert(after, runtime.gather, (labels, None, tuple(ids.shape)), {}, "rows")
        if len(labels) == 1 and loops is not None:
            args = (labels[0], *loops, int(index.flatten()[0]), tuple(ids.shape))
            return self._insert(after, runtime.view, args, {}, "rows")
        return self._insert(after, runtime.gather, (labels, self._constant(index, "index", after)), {}, "rows")

    def _spread(self, place: int, after: Node) -> Node:
        """A label that is the same for all samples of one mask, for each of them."""
        key = ("spread", place)
        if key not in self.known:
            images = self.copies[self.found.images]
            self.known[key] = self._insert(after, runtime.spread, (self.written[place], images), {}, "label")
        return self.known[key]

    def _output(self, output: OutputLabel) -> Node:
        end = self._end()
        rows = self._rows(output.rows, end, for_each=True)
        where = output.where
        return self._insert(end, runtime.output, (rows, where.axis, where.outer, where.inner), {}, "share")

    def _end(self) -> Node:
        node: Node = next(iter(reversed(self.graph.nodes)))
        return node

    def _insert(self, after: Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Node:
        with self.graph.inserting_after(self.last.get(after, after)):
            node = self.graph.create_node("call_function", function, args, kwargs, name=name)
        stay_in_regions(node, after)
        self.last[after] = node
        return node

    def _constant(self, tensor: Tensor, name: str, after: Node) -> Node:
        """A tensor of the graph's own, one for all places that need the same."""
        key = digest(tensor)
        if key not in self.constants:
            self.constants[key] = f"{name}_{len(self.buffers)}"
            self.buffers[self.constants[key]] = tensor.to(self.found.device)
        with self.graph.inserting_after(self.last.get(after, after)):
            node = self.graph.get_attr(self.constants[key])
        self.last[after] = node
        return node


def _in_order(places: Tensor) -> list[int]:
    """Distinct places in the order of their first occurrence."""
    distinct, inverse = places.unique(return_inverse=True)
    return [int(p) for p in distinct[by_first_occurrence(inverse, len(distinct))]]
