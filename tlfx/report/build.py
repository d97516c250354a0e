"""From a propagation to a report: one entry for every node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tlfx._torch import tree_leaves
from tlfx.graph.nodes import module_path, shapes
from tlfx.graph.residuals import content_graph, residual_arms
from tlfx.graph.shells import MODEL
from tlfx.operations import Operation
from tlfx.propagate.labels import LabelTensor
from tlfx.propagate.outputs import OutputLabel
from tlfx.propagate.propagator import Propagation
from tlfx.propagate.values import Role, Value
from tlfx.report.data import NodeReport, OutputReport, short
from tlfx.report.flops import flops
from tlfx.report.layout import layout, tokens
from tlfx.report.why import reason
from tlfx.rewrite.writer import read_labels
from tlfx.rules.registry import operator_name

__all__ = ["nodes_of", "outputs_of"]


def nodes_of(propagation: Propagation, batch: int) -> tuple[NodeReport, ...]:
    """Reports of all nodes of the captured graph except the output node, in order of execution."""
    builder = _Builder(propagation, batch)
    return tuple(builder.node(n) for n in propagation.graph_module.graph.nodes if n.op != "output")


def outputs_of(propagation: Propagation) -> tuple[OutputReport, ...]:
    """Reports of the outputs: the node that makes the label of each."""
    leaves = tree_leaves(propagation.graph_module.graph.output_node().args)
    pairs = zip(leaves, propagation.outputs, strict=True)
    return tuple(_output(propagation, i, leaf, label) for i, (leaf, label) in enumerate(pairs))


def _output(propagation: Propagation, index: int, leaf: Any, label: OutputLabel | None) -> OutputReport:
    made = shapes(leaf) if isinstance(leaf, Node) else []
    shape = made[0] if made else ()
    if label is None:
        return OutputReport(index, shape, 0, 0, None)
    ids = label.ids.unique()
    owners = [propagation.labels.tensors[int(o)] for o in propagation.labels.owners(ids).unique()]
    after = owners[0].after if len(owners) == 1 else None
    return OutputReport(index, shape, len(ids), sum(o.size for o in owners), after.name if after else None)


@dataclass(frozen=True)
class _Place:
    """The module that a node belongs to."""

    path: str
    kind: str


class _Builder:
    """Makes the reports of nodes; holds the indexes that all of them look up."""

    def __init__(self, propagation: Propagation, batch: int) -> None:
        self.propagation = propagation
        self.batch = batch
        self.live = read_labels(propagation.labels, propagation.outputs)
        self.computed = self._computed()
        self.weights = {arg for label in self.live.values() for arg in _nodes(label)}
        self.labels: dict[Node | None, list[LabelTensor]] = {}
        for label in propagation.labels.tensors:
            self.labels.setdefault(label.after, []).append(label)
        self.kinds = {path: type(m).__name__ for path, m in propagation.graph_module._modules[MODEL].named_modules()}  # type: ignore[union-attr]
        self.graph = content_graph(propagation.operations, propagation.regions.sources_of)
        self.by_name = {node.name: node for node in propagation.operations}

    def node(self, node: Node) -> NodeReport:
        """The report of one node."""
        operation = self.propagation.operations[node]
        value = self.propagation.values[node]
        given = [v for n in node.all_input_nodes for v in _held(self.propagation.values.get(n))]
        place = self._place(node)
        skip, branch, shortcut = self._skip(node) if operation is Operation.RESIDUAL else (None, (), ())
        return NodeReport(
            name=node.name,
            operator=_operator(node),
            operation=operation,
            module=place.path,
            module_class=place.kind,
            inputs=tuple(n.name for n in node.all_input_nodes),
            in_shapes=tuple(s for n in node.all_input_nodes for s in shapes(n)),
            out_shapes=tuple(shapes(node)),
            before=_before(operation, given),
            after=layout(value),
            tokens=tokens(value),
            why=self._reason(node, operation, given, value),
            flops=flops(node) // self.batch if node.op == "call_function" else 0,
            read=self._is_read(node, operation, value),
            skip=skip,
            branch=branch,
            shortcut=shortcut,
            ends=self._ends(place.path, branch),
        )

    def _reason(self, node: Node, operation: Operation, given: list[Value], value: Any) -> str:
        call = self.propagation.regions.ruled_call_of(node)
        return reason(node, operation, given, self.labels.get(node, []), value, call)

    def _computed(self) -> torch.Tensor:
        """For each element of a map, whether the aligned graph computes its label; last the answer for ``NONE``."""
        computed = torch.zeros(self.propagation.labels.size, dtype=torch.bool)
        for label in self.live.values():
            computed[label.first : label.first + label.size] = True if label.kept is None else label.kept
        return torch.cat((computed.repeat_interleave(self.batch), torch.zeros(1, dtype=torch.bool)))

    def _is_read(self, node: Node, operation: Operation, value: Any) -> bool:
        if operation is Operation.CONSTANT:
            return False
        if operation is Operation.WEIGHT:
            return node in self.weights
        maps = [m for v in _held(value) if v.role is Role.CONTENT for m in v.maps]
        return any(bool(self.computed[m].any()) for m in maps)

    def _skip(self, node: Node) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
        """Names of the start of a skip connection, of the nodes of the branch, and of those on the skip itself."""
        arms = residual_arms(self.graph, [n for n in node.all_input_nodes if n in self.graph])
        if arms is None:
            return None, (), ()
        return arms.start.name, tuple(n.name for n in arms.branch), tuple(n.name for n in arms.shortcut)

    def _ends(self, module: str, branch: Sequence[str]) -> tuple[str, ...]:
        """First and last node of a branch: by module path relative to ``module``, or by operator if directly in it."""
        ends = [self.by_name[name] for name in dict.fromkeys((*branch[:1], *branch[-1:]))]
        paths = [self._place(node).path.removeprefix(module).removeprefix(".") for node in ends]
        return tuple(path or short(_operator(node)) for path, node in zip(paths, ends, strict=True))

    def _place(self, node: Node) -> _Place:
        """The module that a node was captured in; for a parameter, the module that holds it."""
        path = module_path(node).partition("@")[0]
        if node.op == "get_attr":
            path = str(node.target).removeprefix(f"{MODEL}.").rpartition(".")[0]
            path = path if path in self.kinds else ""
        return _Place(path, self.kinds.get(path, ""))


def _held(value: Any) -> list[Value]:
    return [v for v in tree_leaves(value, is_leaf=lambda x: isinstance(x, Value)) if isinstance(v, Value)]


def _nodes(label: LabelTensor) -> list[Node]:
    return [a for a in tree_leaves((label.args, label.kwargs)) if isinstance(a, Node)]


def _operator(node: Node) -> str:
    return operator_name(node.target) if node.op == "call_function" else node.op


def _before(operation: Operation, given: list[Value]) -> str:
    """Layouts of the inputs: for spatial mixing only the value's, otherwise the distinct ones, at most two."""
    content = [layout(v) for v in given if v.is_content] or [layout(v) for v in given if not v.is_constant]
    if operation is Operation.SPATIAL_MIX:
        content = content[-1:]
    distinct = list(dict.fromkeys(content))
    return " + ".join(distinct[:2]) + (" + …" if len(distinct) > 2 else "")
