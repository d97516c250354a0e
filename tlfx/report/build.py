"""From what propagation found to a report: one entry for every node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from tlfx.capture.export import MODEL
from tlfx.graph.nodes import module_path, shapes
from tlfx.graph.residuals import content_graph, skip_of
from tlfx.operations import Operation
from tlfx.propagate.labels import Label
from tlfx.propagate.outputs import OutputLabel
from tlfx.propagate.propagator import Propagation
from tlfx.propagate.values import NONE, Role, Value
from tlfx.report.data import NodeReport, OutputReport, short
from tlfx.report.flops import flops
from tlfx.report.layout import layout, tokens
from tlfx.report.why import reason
from tlfx.rewrite.writer import read_labels
from tlfx.rules.registry import operator_name

__all__ = ["nodes_of", "outputs_of"]


def nodes_of(found: Propagation, batch: int) -> tuple[NodeReport, ...]:
    """Every node of the captured graph but its output, in order of execution."""
    builder = _Builder(found, batch)
    return tuple(builder.node(n) for n in found.graph_module.graph.nodes if n.op != "output")


def outputs_of(found: Propagation) -> tuple[OutputReport, ...]:
    """Where the label of each output is read."""
    leaves = tree_leaves(found.graph_module.graph.output_node().args)
    pairs = zip(leaves, found.outputs, strict=True)
    return tuple(_output(found, i, leaf, label) for i, (leaf, label) in enumerate(pairs))


def _output(found: Propagation, index: int, leaf: Any, label: OutputLabel | None) -> OutputReport:
    made = shapes(leaf) if isinstance(leaf, Node) else []
    shape = made[0] if made else ()
    if label is None:
        return OutputReport(index, shape, 0, 0, None)
    rows = label.rows.unique()
    owners = [found.labels.labels[int(o)] for o in found.labels.owners(rows).unique()]
    after = owners[0].after if len(owners) == 1 else None
    return OutputReport(index, shape, len(rows), sum(o.size for o in owners), after.name if after else None)


@dataclass(frozen=True)
class _Place:
    """The module that a node lies in."""

    path: str
    kind: str


class _Builder:
    """What nodes are looked up in while their reports are made."""

    def __init__(self, found: Propagation, batch: int) -> None:
        self.found = found
        self.batch = batch
        self.live = read_labels(found.labels, found.outputs)
        self.rows = self._computed_rows()
        self.weights = {arg for label in self.live.values() for arg in _nodes(label)}
        self.labels: dict[Node | None, list[Label]] = {}
        for label in found.labels.labels:
            self.labels.setdefault(label.after, []).append(label)
        self.kinds = {path: type(m).__name__ for path, m in found.graph_module._modules[MODEL].named_modules()}  # type: ignore[union-attr]
        self.graph = content_graph(found.operations, found.regions.sources_of)
        self.by_name = {node.name: node for node in found.operations}

    def node(self, node: Node) -> NodeReport:
        """The report of one node."""
        operation = self.found.operations[node]
        value = self.found.values[node]
        given = [v for n in node.all_input_nodes for v in _held(self.found.values.get(n))]
        place = self._place(node)
        skip, branch = self._skip(node) if operation is Operation.RESIDUAL else (None, ())
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
            why=reason(
                node, operation, given, self.labels.get(node, []), value, self.found.regions.ruled_call_of(node)
            ),
            flops=flops(node) // self.batch if node.op == "call_function" else 0,
            read=self._is_read(node, operation, value),
            skip=skip,
            branch=branch,
            ends=self._ends(place.path, branch),
        )

    def _computed_rows(self) -> torch.Tensor:
        """Which label rows the aligned graph computes."""
        rows = torch.zeros(self.found.labels.rows, dtype=torch.bool)
        for label in self.live.values():
            rows[label.first : label.first + label.size] = True if label.kept is None else label.kept
        return rows

    def _is_read(self, node: Node, operation: Operation, value: Any) -> bool:
        if operation is Operation.CONSTANT:
            return False
        if operation is Operation.WEIGHT:
            return node in self.weights
        maps = [m for v in _held(value) if v.role is Role.CONTENT for m in v.maps]
        batch = next((v.batch for v in _held(value)), 1)
        ids = [m[m != NONE].div(batch, rounding_mode="floor") for m in maps]
        return any(bool(self.rows[i].any()) for i in ids)

    def _skip(self, node: Node) -> tuple[str | None, tuple[str, ...]]:
        found = skip_of(self.graph, [n for n in node.all_input_nodes if n in self.graph])
        return (found[0].name, tuple(n.name for n in found[1])) if found else (None, ())

    def _ends(self, module: str, branch: Sequence[str]) -> tuple[str, ...]:
        """The first and the last of a branch: modules as seen from ``module``, operators where they lie in it."""
        ends = [self.by_name[name] for name in dict.fromkeys((*branch[:1], *branch[-1:]))]
        paths = [self._place(node).path.removeprefix(module).removeprefix(".") for node in ends]
        return tuple(path or short(_operator(node)) for path, node in zip(paths, ends, strict=True))

    def _place(self, node: Node) -> _Place:
        """The module a node was captured in; of a parameter, the one that holds it."""
        path = module_path(node).partition("@")[0]
        if node.op == "get_attr":
            path = str(node.target).removeprefix(f"{MODEL}.").rpartition(".")[0]
            path = path if path in self.kinds else ""
        return _Place(path, self.kinds.get(path, ""))


def _held(value: Any) -> list[Value]:
    return [v for v in tree_leaves(value, is_leaf=lambda x: isinstance(x, Value)) if isinstance(v, Value)]


def _nodes(label: Label) -> list[Node]:
    return [a for a in tree_leaves((label.args, label.kwargs)) if isinstance(a, Node)]


def _operator(node: Node) -> str:
    return operator_name(node.target) if node.op == "call_function" else node.op


def _before(operation: Operation, given: list[Value]) -> str:
    """Layouts that go in: of spatial mixing that of the value, of all else each once, up to two."""
    content = [layout(v) for v in given if v.is_content] or [layout(v) for v in given if not v.is_constant]
    if operation is Operation.SPATIAL_MIX:
        content = content[-1:]
    distinct = list(dict.fromkeys(content))
    return " + ".join(distinct[:2]) + (" + …" if len(distinct) > 2 else "")
