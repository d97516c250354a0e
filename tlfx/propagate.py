"""Propagation: one walk over a captured graph that gives every value its provenance and every node its operation.

Nothing is computed but shapes, integer maps and the few constants (indices, masks) that movement depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_map

from tlfx import runtime
from tlfx.alias import AliasSets, written_argument
from tlfx.constant import Constants
from tlfx.errors import InputError, RuleError, TlfxError, UnknownOperatorError
from tlfx.gates import Gates
from tlfx.label import MASK, LabelTable, Rows
from tlfx.lifetime import last_reads
from tlfx.observer import Observer, Recorded
from tlfx.opaque import ModuleCall, call_of
from tlfx.outputs import OutputLabel, read_outputs
from tlfx.policy import DEFAULT, Policy
from tlfx.provenance import BatchAxis, Role, Value, merge_batch
from tlfx.rule import REGISTRY, Rule, operator_name
from tlfx.skip import content_graph, skip_of
from tlfx.source import describe, hint, module_path, shapes
from tlfx.taxonomy import Operation
from tlfx.verbs import ModuleOp, Op
from tlfx.verbs.base import Verbs

__all__ = ["Options", "Propagation", "Walk", "propagate"]


@dataclass(frozen=True)
class Options:
    """How labels are to be aligned; see :func:`tlfx.align`."""

    layers: tuple[str | int, ...] | None = None
    policy: Policy = DEFAULT
    on_unknown: str = "error"
    attention: str = "auto"
    record: tuple[str, ...] = ()
    """Patterns of the modules and nodes whose labels are to be read; see :func:`tlfx.record`."""
    keep: bool = False
    """Whether the maps of all values are kept, for reports; else each is freed when nothing reads it any more."""


@dataclass(frozen=True, eq=False)
class Propagation:
    """What the walk found: a value and an operation for every node, all labels, and those of outputs and on the way.

    Values have no maps any more but where ``Options.keep`` asked for them.
    """

    graph_module: GraphModule
    images: Node
    values: dict[Node, Any]
    operations: dict[Node, Operation]
    labels: LabelTable
    outputs: list[OutputLabel | None]
    recorded: Recorded

    @property
    def device(self) -> torch.device:
        """Where the images, and so the labels, lie."""
        return _device(self.images)


def propagate(graph_module: GraphModule, images: str, options: Options | None = None) -> Propagation:
    """Walk a captured graph; ``images`` names the placeholder that holds the image content.

    Raises UnknownOperatorError for an operator without a rule, RuleError or ProvenanceError where content cannot be
    followed, NoContentError if no output holds any, InputError for layers counted from the last beyond the first.
    """
    options = options or Options()
    if any(isinstance(layer, int) and layer < 0 for layer in options.layers or ()):
        options = replace(options, layers=_from_the_first(graph_module, images, options))
    return Walk(graph_module, images, options).run()


def _from_the_first(graph_module: GraphModule, images: str, options: Options) -> tuple[str | int, ...]:
    """Layers with all numbers counted from the first attention, as only a walk with all of them aligned can tell."""
    walk = Walk(graph_module, images, replace(options, layers=None, record=()))
    walk.run()
    count, layers = walk.attentions, options.layers or ()
    lowest = min(layer for layer in layers if isinstance(layer, int))
    if lowest < -count:
        raise InputError(
            f"layers holds {lowest}, but attentions that mix tokens in this model number {count}: expected "
            + (f"numbers from {-count} to {count - 1}" if count else "no numbers, as there is nothing to choose from")
        )
    return tuple(layer + count if isinstance(layer, int) and layer < 0 else layer for layer in layers)


class Walk:
    """The interpreter behind :func:`propagate`, and what verbs may ask of it."""

    def __init__(self, graph_module: GraphModule, images: str, options: Options) -> None:
        self.graph_module = graph_module
        self.options = options
        self.images = next(n for n in graph_module.graph.nodes if n.op == "placeholder" and n.name == images)
        self.batch = shapes(self.images)[0][0]
        self.table = LabelTable()
        self.values: dict[Node, Any] = {}
        self.operations: dict[Node, Operation] = {}
        self.gates = Gates(self.values, self.operations)
        self._aliases = AliasSets(self.values)
        self._constants = Constants(graph_module, self.values, self._aliases)
        self._settled: list[tuple[int, Tensor]] = []
        self._attention: dict[Node, int] = {}

    def run(self) -> Propagation:
        """Walk the graph in order."""
        outputs: list[OutputLabel | None] = []
        observer = Observer(self.graph_module.graph) if self.options.record else None
        recorded = Recorded()
        keep = self.options.keep or observer or self.options.policy.residual == "gated"  # gates are read long after
        read = {} if keep else last_reads(self.graph_module.graph)
        for node in self.graph_module.graph.nodes:
            if node.op == "output":
                op = Op(node, (), {}, self)
                outputs = read_outputs(op, self.values)
                recorded = observer.choose(self.options.record, op) if observer else recorded
                continue
            self.values[node] = self._visit(node)
            self._aliases.add(node)
            if observer:
                observer.see(node, self.values)
            for source in read.get(node, ()):
                self._free(source)
        return Propagation(self.graph_module, self.images, self.values, self.operations, self.table, outputs, recorded)

    def _free(self, node: Node) -> None:
        """Let go of the maps of a value that nothing reads any more."""

        def freed(value: Any) -> Any:
            return replace(value, maps=(), spectrum=None) if isinstance(value, Value) else value

        self.values[node] = tree_map(freed, self.values[node])
        self._aliases.remove(node)

    def tokens(self, x: Value, content: Tensor) -> None:
        """Remember that a constant is joined to tokens: wherever else it goes, it has the image-level label too."""
        known = self.values.get(x.node)
        if isinstance(known, Value) and known.is_constant and known.shape == x.shape:
            self.values[x.node] = known.with_maps(content, role=Role.CONTENT)

    def settle(self, rows: Tensor, op: Verbs) -> None:
        """Register a context, rows (out, heads), with the label it has when used by itself."""
        settled = op.label(runtime.settle, Rows(rows), shape=(len(rows),), elementwise=True)
        first = int(rows.min())
        by_row = torch.empty(rows.numel(), dtype=torch.int64)
        by_row[rows - first] = settled[:, None].expand_as(rows)
        self._settled.append((first, by_row))

    def settle_as_weight(self, node: Node) -> None:
        """Tell that a context turned out to be a mixing weight (a softmax follows it), and so did what made it."""
        value = self.values.get(node)
        if isinstance(value, Value) and value.role is Role.CONTEXT:
            self.operations[node] = Operation.WEIGHT
            for source in node.all_input_nodes:
                self.settle_as_weight(source)

    def settled(self, content: Tensor) -> Tensor:
        """A map with the rows of contexts replaced by those they have as content."""
        rows = content.div(self.batch, rounding_mode="floor")
        for first, by_row in self._settled:
            inside = (rows >= first) & (rows < first + len(by_row))
            if bool(inside.any()):
                new = by_row[(rows - first).clamp(0, len(by_row) - 1)] * self.batch + content % self.batch
                content = torch.where(inside, new, content)
        return content

    @property
    def attentions(self) -> int:
        """How many attentions that mix tokens the walk has met."""
        return len(self._attention)

    def is_aligned(self, node: Node) -> bool:
        """Whether the attention at this node is aligned, by ``layers``: glob patterns of modules, or their numbers."""
        number = self._attention.setdefault(node, len(self._attention))
        if self.options.layers is None:
            return True
        path = module_path(node)
        return any(number == x if isinstance(x, int) else _is_inside(path, x) for x in self.options.layers)

    @property
    def joins_attention(self) -> bool:
        """Whether labels may go through the model's own fused attention, by ``attention``: on the CPU, where the kernel
        that can carry them is."""
        return self.options.attention != "fused" and _device(self.images).type == "cpu"

    def is_branch(self, a: Value, b: Value) -> bool:
        """Whether the first of two summands is the branch g of a residual connection, not its skip path."""
        graph = content_graph(self.operations)
        found = skip_of(graph, [v.node for v in (a, b) if v.node in graph])
        return b.node not in found[1] if found else a.node not in graph

    def evaluate(self, node: Node) -> Any:
        """What a constant node holds, None if it depends on the image or on chance, or has no data."""
        return self._constants.evaluate(node)

    def _visit(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            self.operations[node] = Operation.CONSTANT
            return Value(node, shapes(node)[0], self.batch) if shapes(node) else None
        call = call_of(node)
        return self._call(node) if call is None else self._inside(node, call)

    def _placeholder(self, node: Node) -> Any:
        self.operations[node] = Operation.CONSTANT
        if not shapes(node):
            return node.meta.get("val")
        shape = shapes(node)[0]
        if node is not self.images:
            return Value(node, shape, self.batch)
        self.operations[node] = Operation.LAYOUT
        size = shape[2:]
        self.table.add(runtime.share, MASK, node, shape=(1,), after=node)
        rows = self.table.add(runtime.pixels, MASK, node, shape=size, after=node)
        content = merge_batch(rows.view(1, 1, 1, *size), self.batch, BatchAxis(0))
        return Value(node, shape, self.batch, Role.CONTENT, (content,))

    def _inside(self, node: Node, call: ModuleCall) -> Any:
        """A node in a call of a module with a rule: its last one stands for all."""
        self.operations[node] = Operation.CONSTANT
        self.values[node] = self._of_constants(node)
        if node is call.last:
            self._apply_module(call)
        return self.values[node]

    def _apply_module(self, call: ModuleCall) -> None:
        look_up = self.values.get
        args, kwargs = tree_map(lambda a: look_up(a) if isinstance(a, Node) else a, call.arguments)
        if all(v.is_constant for v in tree_flatten((args, kwargs))[0] if isinstance(v, Value)):
            return
        op = ModuleOp(call, args, kwargs, self)
        found = REGISTRY.find_module(call.module)
        assert found is not None
        out = self._judge(found, op, call.module, *args, **kwargs)
        values = [v for v in tree_flatten(out)[0] if isinstance(v, Value)]
        if len(values) != len(call.outputs):
            raise RuleError(
                f"the rule {found.origin} gives {len(values)} values for a module that returns {len(call.outputs)} "
                f"tensors\n{describe(call.last)}"
            )
        self._write_back(call, values)
        for node, value in zip(call.outputs, values, strict=True):
            if node in call.inner:
                self.values[node] = op.output(value, node)
                self.operations[node] = _operation_of(op, value)

    def _write_back(self, call: ModuleCall, values: Sequence[Value]) -> None:
        """Where a module writes to what it was given, all views of that follow the output that shares its memory."""
        self._aliases.add(call.last)
        changed = self._aliases.written_by(call.inner)
        made = [n for n in self._with_content([*changed, *call.inner]) if any(self._is_read_by(u) for u in n.users)]
        lost = [n for n in made if n not in call.outputs]
        for node, value in zip(call.outputs, values, strict=True):
            if self._aliases.storage_of(node) in changed.values():
                self._aliases.write(node, value)
                lost = [n for n in lost if self._aliases.storage_of(n) != self._aliases.storage_of(node)]
        if lost:
            raise RuleError(
                f"{type(call.module).__name__} has a rule of its own, and {lost[0].name}, which it computes or writes "
                f"to and does not return, is read after it: no rule can tell its label\n{describe(call.last)}"
            )

    def _with_content(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of ``nodes`` (in order) that are computed from content, inside a call or not."""
        found: set[Node] = set()
        for node in nodes:
            sources = {node, *node.all_input_nodes}
            values = [self.values[n] for n in sources]
            if not found.isdisjoint(sources) or any(isinstance(v, Value) and not v.is_constant for v in values):
                found.add(node)
        return [node for node in nodes if node in found]

    def _is_read_by(self, user: Node) -> bool:
        """Whether a node that is still to come makes something of a value."""
        return user not in self.values and (user.op == "output" or bool(shapes(user)))

    def _call(self, node: Node) -> Any:
        args, kwargs = tree_map(self._look_up, (tuple(node.args), dict(node.kwargs)))
        held = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Value)]
        self.operations[node] = Operation.CONSTANT
        if not held and not shapes(node):
            return self._plain(node, args, kwargs)
        if all(v.is_constant for v in held):
            self._aliases.note_write(node)
            return self._of_constants(node)
        return self._apply(node, args, kwargs)

    def _look_up(self, arg: Any) -> Any:
        return self.values[arg] if isinstance(arg, Node) else arg

    def _plain(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Arithmetic on sizes."""
        if any(not isinstance(a, int | float | bool | SymInt | SymFloat | SymBool) for a in args):
            return None
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _of_constants(self, node: Node) -> Any:
        sizes = shapes(node)
        if not sizes:
            leaves = tree_flatten(node.meta.get("val"))[0]
            return hint(leaves[0]) if len(leaves) == 1 else None
        values = [Value(node, shape, self.batch) for shape in sizes]
        return values[0] if isinstance(node.meta["val"], Tensor) else values

    def _apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = REGISTRY.find(node.target)
        if found is None:
            return self._unknown(node, args, kwargs)
        op = Op(node, args, kwargs, self)
        out = self._judge(found, op, *args, **kwargs)
        self.operations[node] = _operation_of(op, out)
        written = written_argument(node)
        if written is not None and isinstance(out, Value):
            self._aliases.write(written, out)
        return out

    def _judge(self, found: Rule, op: Op, *args: Any, **kwargs: Any) -> Any:
        """What a rule makes of an operation; errors tell where."""
        try:
            return found.function(op, *args, **kwargs)
        except TlfxError as error:
            raise type(error)(f"{error}\n{describe(op.node)}") from error
        except Exception as error:
            raise RuleError(
                f"the rule {found.origin} failed: {type(error).__name__}: {error}\n{describe(op.node)}"
            ) from error

    def _unknown(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.options.on_unknown == "pointwise":
            op = Op(node, args, kwargs, self)
            content = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Value) and not v.is_constant]
            same = [v for v in content if v.shape == op.shape]
            self.operations[node] = Operation.POINTWISE
            return op.pointwise(same[0]) if same else op.weight()
        raise UnknownOperatorError(
            f"no rule for the operator {operator_name(node.target)}\n{describe(node)}\n"
            "Write one with tlfx.rule.rule, or pass on_unknown='pointwise' to let labels pass where the shape is kept."
        )


def _is_inside(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def _operation_of(op: Op, out: Any) -> Operation:
    """The operation of a node: what its verbs recorded, unless the value that came out is a weight or constant."""
    first = out[0] if isinstance(out, list | tuple) and out else out
    if not isinstance(first, Value) or first.is_constant:
        return Operation.CONSTANT
    if first.role is Role.WEIGHT:
        return Operation.WEIGHT
    return op.operation


def _device(node: Node) -> torch.device:
    device: torch.device = node.meta["val"].device
    return device
