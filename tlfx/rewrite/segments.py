"""Segments: each region of an aligned graph in a separate graph, which runs as the model runs the region.

A call of a module with hooks runs through that module: its hooks fire, and fully_shard gathers its parameters just
before they are read and frees them afterwards. A region under torch.utils.checkpoint is checkpointed again, always with
use_reentrant=False. Segments nest as regions do. A graph without regions is not cut."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils.checkpoint import checkpoint, noop_context_fn

from tlfx._torch import call_with_hooks, tree_leaves, tree_unflatten, version
from tlfx.capture.hooks import is_changed
from tlfx.capture.modes import restored_after_error
from tlfx.capture.regions import FORWARD_HOOKS, Checkpoint, HookedCall, Region, RegionTree
from tlfx.errors import CaptureError
from tlfx.graph.shells import MODEL, graph_module_of
from tlfx.rewrite.stretches import with_stretches
from tlfx.rewrite.writer import AlignedGraph

__all__ = ["segmented"]


def segmented(aligned: AlignedGraph) -> GraphModule:
    """The same function with every region in a segment, and stretches of label arithmetic in separate graphs."""
    whole = aligned.graph_module
    return _Cutter(whole, aligned.regions).cut() if aligned.regions.regions else with_stretches(whole)


class _Cutter:
    """Cuts a graph along its regions, from the outside in."""

    def __init__(self, source: GraphModule, regions: RegionTree) -> None:
        self.source = source
        self.regions = regions
        self.nodes = [n for n in source.graph.nodes if n.op == "call_function"]
        self.readers: dict[Node, set[Node | Region]] = defaultdict(set)
        for node in source.graph.nodes:
            for read in node.all_input_nodes:
                self.readers[read].add(node)
        for region in regions.regions:  # hooks receive all inputs and outputs, whether the graph reads them or not
            for read in _nodes(region.inputs) + _nodes(region.outputs):
                self.readers[read].add(region)

    def cut(self) -> GraphModule:
        """The outermost graph, with the inputs and outputs of the source."""
        inputs = [n for n in self.source.graph.nodes if n.op == "placeholder"]
        return self.graph_of(self.nodes, 0, inputs, self.source.graph.output_node().args[0])

    def graph_of(self, nodes: Sequence[Node], depth: int, inputs: Sequence[Node], results: Any) -> GraphModule:
        """A graph of some nodes, in which the regions at a depth are segments."""
        graph = Graph()
        parts: dict[str, nn.Module] = {}
        copies: dict[Node, Node] = {}
        for node in inputs:
            copies.setdefault(node, graph.placeholder(node.name))

        def copy_of(node: Node) -> Node:
            if node.op == "get_attr" and node not in copies:  # read in the segment, where fully_shard gathered it
                copies[node] = graph.node_copy(node)
            return copies[node]

        for region, group in groupby(nodes, lambda n: next(iter(self.regions.path_of(n)[depth:]), None)):
            if region is None:
                for node in group:
                    map_arg((node.args, node.kwargs), copy_of)
                    copies[node] = graph.node_copy(node, copy_of)
                continue
            given, made, segment = self.segment_of(region, list(group), depth)
            name = f"segment_{len(parts)}"
            parts[name] = segment
            call = graph.create_node("call_module", name, tuple(map(copy_of, given)))
            for place, node in enumerate(made):
                copies[node] = graph.call_function(operator.getitem, (call, place))
        graph.output(map_arg(results, copy_of))
        return self.module_of(graph, parts)

    def segment_of(self, region: Region, nodes: list[Node], depth: int) -> tuple[list[Node], list[Node], nn.Module]:
        """The inputs of a region, its outputs, and the module that computes them."""
        given, shown = _nodes(region.inputs), _nodes(region.outputs)
        parts = dict.fromkeys(part for n in nodes for part in self.regions.path_of(n)[depth + 1 :])
        inside = {*nodes, *parts}
        read = [*(x for n in nodes for x in n.all_input_nodes), *(x for part in parts for x in _nodes(part.inputs))]
        free = [x for x in read if x not in inside and x.op != "get_attr" and x not in given]
        inputs = [*given, *dict.fromkeys(free)]
        made = [n for n in nodes if n not in shown and not self.readers[n] <= inside]
        body = self.graph_of(nodes, depth + 1, inputs, (region.outputs, made))
        if isinstance(region, HookedCall):
            return inputs, [*shown, *made], _Through(region, body)
        assert isinstance(region, Checkpoint)
        paths = {str(x.target) for n in nodes for x in n.all_input_nodes if x.op == "get_attr"}
        return inputs, made, _Checkpointed(region, body, sorted(filter(self.is_buffer, paths)))

    def is_buffer(self, path: str) -> bool:
        """Whether a path leads to a buffer of the model."""
        attribute = operator.attrgetter(path)(self.source)
        return (
            path.startswith(f"{MODEL}.") and isinstance(attribute, Tensor) and not isinstance(attribute, nn.Parameter)
        )

    def module_of(self, graph: Graph, parts: dict[str, nn.Module]) -> GraphModule:
        """A graph module with the modules and buffers of the source, and segments."""
        graph.lint()
        modules = {**self.source._modules, **parts}
        return with_stretches(graph_module_of(graph, modules, self.source._buffers, type(self.source).__name__))


def _nodes(leaves: Sequence[Any]) -> list[Node]:
    """The nodes among leaves."""
    return [x for x in leaves if isinstance(x, Node)]


class _Through(nn.Module):
    """Runs a graph as the forward of the module it was captured from, between the hooks of that module."""

    def __init__(self, region: HookedCall, body: GraphModule) -> None:
        super().__init__()
        self.region = region
        self.body = body

    def forward(self, *values: Any) -> tuple[Any, ...]:
        """The tensors that the module returns, and the other values that later nodes read."""
        region = self.region
        more: list[Any] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves = zip(tree_leaves((args, kwargs)), region.inputs, strict=True)
            given = [x for x, leaf in leaves if isinstance(leaf, Node)]
            outputs, more[:] = self.body(*given, *values[len(given) :])
            return tree_unflatten(outputs, region.out_spec)

        given = iter(values)
        args, kwargs = tree_unflatten([next(given) if isinstance(x, Node) else x for x in region.inputs], region.spec)
        with _running(region, forward):
            output = call_with_hooks(region.subject, *args, **kwargs)
        shown = zip(tree_leaves(output), region.outputs, strict=True)
        return (*(x for x, leaf in shown if isinstance(leaf, Node)), *more)


@contextlib.contextmanager
def _running(region: HookedCall, forward: Callable[..., Any]) -> Iterator[None]:
    """The module of a region with a replaced forward, and without the hooks that the graph computes."""
    own = vars(region.subject)
    kept = {k: own[k] for k in ("forward", *FORWARD_HOOKS) if k in own}
    for kind in FORWARD_HOOKS:
        fire = ((n, h) for n, h in kept[kind].items() if n not in region.computed)
        # another dictionary: handles that remove hooks refer to the original one, which is put back
        own[kind] = OrderedDict((n, _watched(h, region.failed[n]) if n in region.failed else h) for n, h in fire)
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        own.update(kept)


def _watched(hook: Callable[..., Any], failed: str) -> Callable[..., Any]:
    """A hook that could not be captured, and so must not change anything."""

    def watched(module: nn.Module, *given: Any) -> Any:
        tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor) and not x.is_inference()]
        before = [version(x) for x in tensors]
        result = hook(module, *given)
        if is_changed(result, given) or before != [version(x) for x in tensors]:
            raise CaptureError(
                f"a hook of {type(module).__name__} changes what the module takes or returns, and cannot be captured "
                f"as a graph ({failed}), so that labels cannot follow it: write it without reading values of tensors "
                "(an if, .item()), or remove it"
            )
        return result

    return watched


class _Checkpointed(nn.Module):
    """Runs a graph under torch.utils.checkpoint; the recomputation in backward does not write to buffers again."""

    def __init__(self, region: Checkpoint, body: GraphModule, buffers: Sequence[str]) -> None:
        super().__init__()
        self.body = body
        self.buffers_of_model = tuple(buffers)
        self.options = dict(region.options)
        self.given = len(_nodes(region.inputs)) if region.reentrant else None

    def forward(self, *values: Any) -> Any:
        """The values that later nodes read. A reentrant checkpoint has gradients only if one of its inputs has."""
        if self.given is not None and not any(x.requires_grad for x in values[: self.given]):
            with torch.no_grad():
                return self.body(*values)[1]
        writes = self.buffers_of_model and not torch.compiler.is_compiling()  # torch.compile writes them once
        options = {**self.options, "context_fn": self.contexts} if writes else self.options
        run = self.body if torch.compiler.is_compiling() else self.run
        return checkpoint(run, *values, use_reentrant=False, **options)[1]

    def run(self, *values: Any) -> Any:
        """Run the graph; a recomputation ends by an error as soon as all that backward needs is computed."""
        device = next((x.device.type for x in values if isinstance(x, Tensor)), "cpu")
        with restored_after_error(device):
            return self.body(*values)

    def contexts(self) -> tuple[Any, Any]:
        """The contexts around the function and around its recomputation."""
        first, again = self.options.get("context_fn", noop_context_fn)()
        return first, self.kept(again)

    @contextlib.contextmanager
    def kept(self, around: Any) -> Iterator[None]:
        """A context that restores the buffers at its end."""
        buffers = [operator.attrgetter(path)(self.body) for path in self.buffers_of_model]
        before = [buffer.detach().clone() for buffer in buffers]
        try:
            with around:
                yield
        finally:
            for buffer, value in zip(buffers, before, strict=True):
                # .data keeps the version, by which backward tells that a saved tensor was modified
                buffer.data.copy_(value)
