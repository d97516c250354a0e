"""Propagation: one pass over a captured graph that gives every value its provenance and every node its operation.

Nothing is computed but shapes, integer maps and the few constants (indices, masks) that data movement depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import GraphModule, Node

from tlfx import runtime
from tlfx._torch import tree_leaves, tree_map
from tlfx.capture.export import Captured
from tlfx.capture.regions import RegionTree
from tlfx.errors import TlfxError
from tlfx.graph.aliasing import written_argument
from tlfx.graph.branch_scales import BranchScales
from tlfx.graph.constants import Constants, Decision
from tlfx.graph.liveness import last_reads, nodes_read
from tlfx.graph.nodes import hint, shapes
from tlfx.operations import Operation
from tlfx.propagate.contexts import LinearContexts
from tlfx.propagate.labels import MASK, LabelTable
from tlfx.propagate.layers import LayerSelection, count_from_first
from tlfx.propagate.maps import map_of_ids
from tlfx.propagate.observer import ObservedLabels, Observer
from tlfx.propagate.options import Options
from tlfx.propagate.outputs import OutputLabel, read_outputs
from tlfx.propagate.rule_calls import apply_rule
from tlfx.propagate.ruled_calls import RuledCalls
from tlfx.propagate.state import PropagationState
from tlfx.propagate.tokens import LearnedTokens
from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs import OpContext
from tlfx.propagate.writes import InPlaceWrites
from tlfx.runtime import BatchAxis

__all__ = ["Propagation", "Propagator", "propagate"]


@dataclass(frozen=True, eq=False)
class Propagation:
    """The result of a propagation: a value and an operation for every node, all labels, and which labels are read.

    Values have maps only where ``Options.keep`` asked for them.
    """

    graph_module: GraphModule
    images: Node
    values: dict[Node, Any]
    operations: dict[Node, Operation]
    labels: LabelTable
    outputs: list[OutputLabel | None]
    recorded: ObservedLabels
    regions: RegionTree
    decisions: tuple[Decision, ...]
    """Values of parameters and buffers that labels were placed by."""

    @property
    def device(self) -> torch.device:
        """The device of the images, and so of the labels."""
        return _device(self.images)


def propagate(captured: Captured, options: Options | None = None) -> Propagation:
    """Propagate labels through a captured graph.

    Raises UnknownOperatorError for an operator without a rule, RuleError or ProvenanceError where content cannot be
    followed, NoContentError if no output holds any, InputError for layers that match no attention.
    """
    options = options or Options()
    if any(isinstance(layer, int) and layer < 0 for layer in options.layers or ()):
        # only a pass over the graph tells how many attention layers there are
        every = Propagator(captured, replace(options, layers=None, record=()))
        every.run()
        options = replace(options, layers=count_from_first(options.layers or (), every.state.layers.count))
    propagator = Propagator(captured, options)
    propagation = propagator.run()
    # a token that was read before it was joined passed for a constant until then
    while tokens := propagator.state.tokens.for_next_pass():
        propagator = Propagator(captured, options, tokens)
        propagation = propagator.run()
    return propagation


class Propagator:
    """Visits the nodes of a graph in order; ``tokens`` are the learned tokens that an earlier pass found."""

    def __init__(self, captured: Captured, options: Options, tokens: Mapping[Node, Tensor] | None = None) -> None:
        self.graph_module = graph_module = captured.graph_module
        self.regions = captured.regions
        self.options = options
        inputs = {n.name: n for n in graph_module.graph.nodes if n.op == "placeholder"}
        self.images = tuple(inputs[name] for name in captured.images)
        self.batch = shapes(self.images[0])[0][0]
        self._frames_first = captured.frames_first
        self._pixels: Tensor | None = None
        self.values: dict[Node, Any] = {}
        self.operations: dict[Node, Operation] = {}
        self._read = nodes_read(graph_module.graph)
        self._writes = InPlaceWrites(self.values, self._number_in)
        self.state = PropagationState(
            batch=self.batch,
            device=_device(self.images[0]),
            options=options,
            operations=self.operations,
            regions=self.regions,
            labels=LabelTable(),
            constants=Constants(graph_module, self._number_of, self._is_constant),
            contexts=LinearContexts(self.batch),
            layers=LayerSelection(options.layers),
            scales=BranchScales(self._is_content, self.operations),
            tokens=LearnedTokens(tokens),
        )
        self._ruled_calls = RuledCalls(self.values, self.operations, self._writes, self.state)

    def run(self) -> Propagation:
        """Visit all nodes, then update those that only later nodes showed to be mixing weights or tokens."""
        graph = self.graph_module.graph
        observer = Observer(graph) if self.options.record else None
        reads = {} if self._keeps_maps else last_reads(graph, self.regions.sources_of, self.regions.reader_of)
        for node in graph.nodes:
            if node.op == "output":
                break
            self.values[node] = self._visit(node)
            self._writes.add(node)
            if observer:
                observer.see(node, self.values)
            for source in reads.get(node, ()):
                self._free(source)
        self.state.layers.check_all_match()
        self.state.subsets.check_all(graph.output_node().all_input_nodes)
        op = OpContext(graph.output_node(), (), {}, self.state)
        outputs = read_outputs(op, self.values)
        recorded = observer.choose(self.options.record, op) if observer else ObservedLabels()
        self.operations.update(self.state.contexts.reclassified(self.values))
        self.values.update(self.state.tokens.joined(self.values))
        # an output may be a context kᵀv that no query reads
        self.values.update({n: op.resolve(v) for n, v in self._outputs() if isinstance(v, Value)})
        return Propagation(
            self.graph_module,
            self.images[0],
            self.values,
            self.operations,
            self.state.labels,
            outputs,
            recorded,
            self.regions,
            tuple(self.state.constants.decisions.values()),
        )

    def _outputs(self) -> Iterator[tuple[Node, Any]]:
        nodes = self.graph_module.graph.output_node().all_input_nodes
        return ((node, self.values[node]) for node in nodes)

    @property
    def _keeps_maps(self) -> bool:
        """Whether maps are read long after the nodes that hold them."""
        return self.options.keep or bool(self.options.record) or self.options.policy.residual == "gated"

    def _free(self, node: Node) -> None:
        """Drop the maps of a value that nothing reads any more."""

        def without_maps(value: Any) -> Any:
            # a spectrum holds the value before the transform, with its maps
            return replace(value.with_maps(), spectrum=None, factors=None) if isinstance(value, Value) else value

        self.values[node] = tree_map(without_maps, self.values[node])
        self._writes.remove(node)

    def _number_in(self, x: Value) -> float | None:
        return OpContext(x.node, (), {}, self.state).number(x)

    def _number_of(self, node: Node) -> int | float | bool | Tensor | None:
        value = self.values.get(node)
        if isinstance(value, Value) and value.is_constant and value.number is not None:
            return torch.full(value.shape, value.number).to(node.meta["val"].dtype)
        return value if isinstance(value, int | float | bool) else None

    def _is_constant(self, node: Node) -> bool:
        value = self.values.get(node)
        constant = all(v.is_constant for v in tree_leaves(value) if isinstance(v, Value))
        return value is not None and constant and not self._writes.is_written(node)

    def _is_content(self, node: Node) -> bool:
        value = self.values.get(node)
        return isinstance(value, Value) and value.is_content

    def _visit(self, node: Node) -> Any:
        self.operations[node] = Operation.CONSTANT
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return self._of_constants(node) if shapes(node) else None
        call = self.regions.ruled_call_of(node)
        if call is None:
            return self._call(node)
        self.values[node] = self._of_constants(node)
        if node is call.last:  # stands for the whole call
            self.state.subsets.check_all(x for x in call.inputs if isinstance(x, Node))
            self._ruled_calls.apply(call)
        return self.values[node]

    def _placeholder(self, node: Node) -> Any:
        if node not in self.images:
            return self._of_constants(node) if shapes(node) else node.meta.get("val")
        self.operations[node] = Operation.LAYOUT
        shape = shapes(node)[0]
        size = runtime.positions(shape, self._frames_first)
        if self._pixels is None:  # other images have been mixed by the same mask
            layout = {"frames_first": True} if self._frames_first else {}
            # the first label has the id 0, which maps call IMAGE
            self.state.labels.add(runtime.share, MASK, node, shape=(1,), kwargs=layout, after=node)
            self._pixels = self.state.labels.add(runtime.pixels, MASK, node, shape=size, kwargs=layout, after=node)
        # (channels, *size), or (frames, channels, height, width) of video
        ids = self._pixels.unsqueeze(1 if self._frames_first else 0)
        content = map_of_ids(ids.view(1, 1, *ids.shape), self.batch, BatchAxis(0))
        return Value(node, shape, self.batch, Role.CONTENT, (content,))

    def _call(self, node: Node) -> Any:
        args, kwargs = tree_map(self._look_up, (tuple(node.args), dict(node.kwargs)))
        operands = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Value)]
        # arithmetic of sizes, such as height // 2
        if not operands and not shapes(node):
            return _size_arithmetic(node, args, kwargs)
        written = written_argument(node)
        if all(v.is_constant for v in operands):
            self._writes.note(node)
            # a constant that is written into content takes labels away, which its rule must tell
            if written is None or not self._writes.reaches_content(written):
                return self._of_constants(node)
        try:
            from_images = [v.node for v in operands if not v.is_constant]
            state = self.state.on(self.state.subsets.visit(node, from_images))
            out, self.operations[node] = apply_rule(node, args, kwargs, state)
        except TlfxError:
            if node in self._read:
                raise
            return None  # no output depends on it: it computes state that the model keeps, whose labels nobody reads
        if written is not None and isinstance(out, Value):
            self._writes.write(written, out, OpContext(node, args, kwargs, state))
        return out

    def _look_up(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, Node) else arg

    def _of_constants(self, node: Node) -> Any:
        sizes = shapes(node)
        if not sizes:
            leaves = tree_leaves(node.meta.get("val"))
            return hint(leaves[0]) if len(leaves) == 1 else None
        values = [Value(node, shape, self.batch) for shape in sizes]
        return self.state.tokens.as_token(values[0]) if isinstance(node.meta["val"], Tensor) else values


def _size_arithmetic(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if any(not isinstance(a, int | float | bool | SymInt | SymFloat | SymBool) for a in args):
        return None
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _device(node: Node) -> torch.device:
    device: torch.device = node.meta["val"].device
    return device
