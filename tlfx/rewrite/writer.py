"""Rewriting: label arithmetic is written into the captured graph, after the values that it reads, as far as outputs
read it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from tlfx import runtime
from tlfx._torch import tree_leaves, tree_map
from tlfx.capture.regions import Region, RegionTree
from tlfx.graph.aliasing import storage_of, written_storages
from tlfx.graph.constants import is_random
from tlfx.graph.shells import graph_module_of
from tlfx.propagate.labels import (
    MASK,
    LabelTable,
    LabelTensor,
    NodeFunction,
    Operand,
    by_first_occurrence,
    digest,
)
from tlfx.propagate.outputs import OutputLabel
from tlfx.propagate.propagator import Propagation
from tlfx.rewrite.functions import FunctionCalls
from tlfx.rewrite.residuals import fuse_residuals
from tlfx.rewrite.strides import find_strides
from tlfx.runtime.equation import is_range
from tlfx.runtime.kernels import load_kernels

__all__ = ["AlignedGraph", "read_labels", "rewrite"]


@dataclass(frozen=True, eq=False)
class AlignedGraph:
    """A graph that computes labels, and the tree of its regions."""

    graph_module: GraphModule
    regions: RegionTree


def rewrite(propagation: Propagation) -> AlignedGraph:
    """The aligned graph: the inputs of the captured graph and a mask in, its outputs and their labels out.

    Each label of an output is float32 of the output's shape without its class axis, label channels last. The recorded
    labels, (batch, *positions, channels), follow them.
    """
    writer = _Writer(propagation)
    return AlignedGraph(writer.write(), writer.regions())


def read_labels(
    table: LabelTable, outputs: Sequence[OutputLabel | None], recorded: Iterable[Tensor] = ()
) -> dict[int, LabelTensor]:
    """The label tensors that outputs and recorded labels depend on, by their place in the table, each restricted to the
    labels that are read."""
    needed = torch.zeros(table.size, dtype=torch.bool)
    for ids in (*(o.ids for o in outputs if o is not None), *recorded):
        needed[ids] = True
    live: dict[int, LabelTensor] = {}
    for place in reversed(range(len(table.tensors))):
        label = table.tensors[place]
        read = needed[label.first : label.first + label.size]
        if not bool(read.any()):
            continue
        live[place] = label = label.restricted(read)
        for operand in label.operands:
            needed[operand.ids] = True
    return live


def labels_of_the_mask(propagation: Propagation, live: Mapping[int, LabelTensor]) -> set[int]:
    """The label tensors, by their place in the table, that follow from the mask and parameters alone, so that samples
    share them if they share a mask."""
    varied = _varied(propagation.graph_module.graph)
    shared: set[int] = set()
    for place, label in sorted(live.items()):
        owners = {int(p) for operand in label.operands for p in propagation.labels.owners(operand.ids).unique()}
        starts = any(isinstance(a, str) and a == MASK for a in label.args)
        by_sample = label.by_sample or label.kwargs.get("where") is not None or not varied.isdisjoint(label.nodes)
        if starts or (owners <= shared and not by_sample):
            shared.add(place)
    return shared


def _varied(graph: Graph) -> set[Node]:
    """Nodes that depend on the arguments of the model, or on chance."""
    varied: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or is_random(node) or not varied.isdisjoint(node.all_input_nodes):
            varied.add(node)
    return varied


class _Writer:
    """Writes label tensors into a copy of the captured graph."""

    def __init__(self, propagation: Propagation) -> None:
        self.propagation = propagation
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.graph.graph_copy(propagation.graph_module.graph, self.copies)
        self.functions = FunctionCalls(propagation.regions, self.graph, self.copies)
        self.innermost = self._copied_regions()
        self.buffers: dict[str, Tensor] = {}
        self.live = read_labels(propagation.labels, propagation.outputs, propagation.recorded.ids.values())
        self.shared = labels_of_the_mask(propagation, self.live)
        self.position = torch.full((propagation.labels.size,), -1)
        self.written: dict[int, Node] = {}
        self.waiting = sorted(self.shared) if self._may_wait() else []
        """Labels of the mask that nothing read so far. They are written in one stretch: between the operators of the
        model, each would find the caches of the CPU cold."""
        self.known: dict[Hashable, Node] = {}
        self.constants: dict[Hashable, str] = {}
        self.last: dict[Node, Node] = {}
        self.mask = self._add_mask()

    def write(self) -> GraphModule:
        """Write all label tensors that are read, in the order of their operators, then the outputs."""
        order = {node: i for i, node in enumerate(self.propagation.graph_module.graph.nodes)}
        for place, label in sorted(self.live.items(), key=lambda item: (order[item[1].after], item[0])):
            if place not in self.waiting:
                assert label.after is not None
                after = self.functions.end_of(label.after) or self.copies.get(label.after)
                self._write(place, label, after or self._end())  # of the output node
        labels = tuple(self._output(o) if o is not None else None for o in self.propagation.outputs)
        recorded = tuple(self._read(ids, self._end(), for_each=True) for ids in self.propagation.recorded.ids.values())
        outputs = self.propagation.graph_module.graph.output_node().args[0]
        self.graph.output((map_arg(outputs, lambda n: self.copies[n]), labels + recorded))
        fuse_residuals(self.graph, self.innermost)
        if self.propagation.device.type != "cpu":
            load_kernels()
        self.graph.lint()
        return self._module()

    def regions(self) -> RegionTree:
        """The regions of the written graph that are run as one."""
        tree = self.propagation.regions.copied(self.graph, self.copies, self.innermost)
        return tree.without(self.graph, {r for r in tree.regions if not r.runs_as_one})

    def _copied_regions(self) -> dict[Node, Region]:
        """The innermost captured region of each node of the copy; a call of an autograd function is a node itself."""
        regions = self.propagation.regions
        innermost: dict[Node, Region] = {}
        for node, copy in self.copies.items():
            region = regions.region_of(node)
            if region is not None and regions.function_call_of(node) is None:
                innermost[copy] = region
        for call, nodes in self.functions.written.items():
            if call.parent is not None:
                innermost |= dict.fromkeys(nodes, call.parent)
        return innermost

    def _module(self) -> GraphModule:
        source = self.propagation.graph_module
        buffers = {**source._buffers, **self.buffers}
        return graph_module_of(self.graph, source._modules, buffers, f"Aligned{type(source).__name__}")

    def _add_mask(self) -> Node:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        with self.graph.inserting_after(inputs[-1]):
            # behind the inputs of the model, so that they keep their positions
            mask = self.graph.placeholder(MASK)
        for node in inputs:
            self.last[node] = mask
        return mask

    def _may_wait(self) -> bool:
        """Whether labels of the mask may be computed later: no region ends before, and no parameter that they read is
        written to."""
        written = written_storages(self.propagation.graph_module.graph.nodes)
        read = {storage_of(n) for place in self.shared for n in self.live[place].nodes}
        return not self.propagation.regions.regions and written.isdisjoint(read)

    def _write_waiting(self, needed: Sequence[int], after: Node) -> None:
        """Write what was waiting, up to the last place that is needed."""
        while self.waiting and self.waiting[0] <= max(needed):
            place = self.waiting.pop(0)
            self._write(place, self.live[place], after)

    def _write(self, place: int, label: LabelTensor, after: Node) -> None:
        assert label.after is not None
        for leaf in tree_leaves((label.args, label.kwargs)):
            if isinstance(leaf, Node | NodeFunction):
                self.functions.check_read(label.after, leaf.node if isinstance(leaf, NodeFunction) else leaf)
        self.position[label.first : label.first + label.size] = label.position()
        for_each = place not in self.shared
        args = tuple(self._operand(a, after, for_each, label.samples) for a in label.args)
        kwargs = {k: self._operand(v, after, for_each, label.samples) for k, v in label.kwargs.items()}
        if "queries" in kwargs and not is_range(kwargs["queries"]):
            kwargs["queries"] = self._constant(torch.tensor(kwargs["queries"]), "queries", after)
        node = self._insert(after, label.function, args, kwargs, "both" if label.replaces_node else "label")
        self.written[place] = self._replace(label.after, node) if label.replaces_node else node

    def _replace(self, original: Node, both: Node) -> Node:
        """Replace a node by the first of two results; the second is the label tensor."""
        node = self.copies[original]
        value, label = (self._insert(node, operator.getitem, (both, i), {}, n) for i, n in enumerate(("own", "label")))
        value.meta, name = node.meta, node.name
        node.replace_all_uses_with(value)
        self.last[value] = self.last.pop(node)
        self.copies[original] = value
        self.innermost.pop(node, None)
        self.graph.erase_node(node)
        # free as soon as the original is erased
        value.name = name
        return label

    def _operand(self, value: Any, after: Node, for_each: bool, samples: Node | None) -> Any:
        if isinstance(value, Operand):
            return self._read(value.ids, after, for_each, value.samples or samples)
        if isinstance(value, NodeFunction):
            return self._of_node(value, after)
        if isinstance(value, Tensor):
            return self._constant(value, "weights", after)
        if isinstance(value, str) and value == MASK:
            return self.mask
        return tree_map(lambda v: self.copies[v] if isinstance(v, Node) else v, value)

    def _of_node(self, value: NodeFunction, after: Node) -> Node:
        """A function of a node, computed where it is read first."""
        # a parameter may have several get_attr nodes: one for each read
        key = (
            value.function,
            value.node.target if value.node.op == "get_attr" else value.node,
            tuple(value.kwargs.items()),
        )
        if key not in self.known:
            self.known[key] = self._insert(after, value.function, (self.copies[value.node],), value.kwargs, "function")
        return self.known[key]

    def _read(self, ids: Tensor, after: Node, for_each: bool, samples: Node | None = None) -> Node:
        """The labels with these ids, in the shape of ``ids``: for each sample, or once for all that share a mask; of
        the samples at an index only, if it is given."""
        key = ("labels", digest(ids), for_each, samples)
        if key not in self.known:
            self.known[key] = self._view_or_copy(ids, after, for_each, samples)
        return self.known[key]

    def _view_or_copy(self, ids: Tensor, after: Node, for_each: bool, samples: Node | None) -> Node:
        """A view of a label tensor where strides can read the ids, else a copy by index."""
        owners = self.propagation.labels.owners(ids)
        places = _in_order(owners.flatten())
        self._write_waiting(places, after)
        offset = torch.zeros(len(self.propagation.labels.tensors), dtype=torch.int64)
        offset[places] = torch.tensor([0, *itertools.accumulate(self.live[p].count for p in places[:-1])])
        # places in the concatenation of the label tensors
        index = self.position[ids] + offset[owners]
        labels = [self._of_samples(p, after, for_each, samples) for p in places]
        strided = find_strides(index)
        # all labels in order: no index
        if torch.equal(index.flatten(), torch.arange(sum(self.live[p].count for p in places))):
            if len(labels) == 1 and ids.dim() == 1:
                return labels[0]
            return self._insert(after, runtime.gather, (labels, None, tuple(ids.shape)), {}, "labels")
        if len(labels) == 1 and strided is not None:
            args = (labels[0], *strided, int(index.flatten()[0]), tuple(ids.shape))
            return self._insert(after, runtime.view, args, {}, "labels")
        return self._insert(after, runtime.gather, (labels, self._constant(index, "index", after)), {}, "labels")

    def _of_samples(self, place: int, after: Node, for_each: bool, samples: Node | None) -> Node:
        """A label tensor as it is read: for each sample, or for those at an index."""
        label = self._spread(place, after) if for_each and place in self.shared else self.written[place]
        if samples is None or self.live[place].samples is samples:
            return label
        key = ("samples", place, samples)
        if key not in self.known:
            self.known[key] = self._insert(after, runtime.select_samples, (label, self.copies[samples]), {}, "label")
        return self.known[key]

    def _spread(self, place: int, after: Node) -> Node:
        """A label that is the same for all samples of one mask, for each of them."""
        key = ("spread", place)
        if key not in self.known:
            images = self.copies[self.propagation.images]
            self.known[key] = self._insert(after, runtime.spread, (self.written[place], images), {}, "label")
        return self.known[key]

    def _output(self, output: OutputLabel) -> Node:
        end = self._end()
        labels = self._read(output.ids, end, for_each=True)
        return self._insert(end, runtime.output, (labels, output.where), {}, "share")

    def _end(self) -> Node:
        node: Node = next(iter(reversed(self.graph.nodes)))
        return node

    def _insert(self, after: Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Node:
        with self.graph.inserting_after(self.last.get(after, after)):
            node = self.graph.create_node("call_function", function, args, kwargs, name=name)
        if after in self.innermost:
            self.innermost[node] = self.innermost[after]
        self.last[after] = node
        return node

    def _constant(self, tensor: Tensor, name: str, after: Node) -> Node:
        """A tensor of the graph's own, one for all places that need the same."""
        key = digest(tensor)
        if key not in self.constants:
            self.constants[key] = f"{name}_{len(self.buffers)}"
            self.buffers[self.constants[key]] = tensor.to(self.propagation.device)
        with self.graph.inserting_after(self.last.get(after, after)):
            node = self.graph.get_attr(self.constants[key])
        self.last[after] = node
        return node


def _in_order(places: Tensor) -> list[int]:
    """Distinct places in the order of their first occurrence."""
    distinct, inverse = places.unique(return_inverse=True)
    return [int(p) for p in distinct[by_first_occurrence(inverse, len(distinct))]]
