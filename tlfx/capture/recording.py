"""All kinds of regions, recorded while a model is captured, then built into the tree of its graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.autograd import Function
from torch.fx import Graph, Node

from tlfx._torch import is_check_of_sizes
from tlfx.capture.autograd_functions import FunctionRecorder, check_function_calls, hoist_sizes, recorded_functions
from tlfx.capture.checkpoints import recorded_checkpoints
from tlfx.capture.hooks import keep_hooks_that_compute, recorded_hooks
from tlfx.capture.leaf_modules import recorded_leaf_modules
from tlfx.capture.region_recorder import RegionRecorder, collect_regions
from tlfx.capture.regions import FunctionCall, Region, RegionTree

__all__ = ["Recording", "build_tree", "recorded_regions"]


class Recording(RegionRecorder):
    """The regions of one capture, and the errors that forwards of autograd functions raised."""

    def __init__(self) -> None:
        super().__init__()
        self.functions = FunctionRecorder(self)

    def function_that_raised(self, error: BaseException | None) -> type[Function] | None:
        """The innermost autograd function whose forward raised an error or its cause."""
        while error is not None:
            for raised, function in self.functions.errors:
                if raised is error:
                    return function
            error = error.__cause__ or error.__context__
        return None


@contextlib.contextmanager
def recorded_regions(model: nn.Module, recording: Recording) -> Iterator[None]:
    """Record all calls of a model that are regions: of hooks, checkpoints, leaf modules and autograd functions."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(recorded_hooks(model, recording))
        stack.enter_context(recorded_leaf_modules(model, recording))  # inside of the hooks of a module
        stack.enter_context(recorded_checkpoints(recording))
        stack.enter_context(recorded_functions(recording.functions))
        yield


def build_tree(graph: Graph, recording: Recording) -> RegionTree:
    """The regions of a captured graph.

    Erases marks, hooks that only observe, checks of sizes, and nodes that neither an output nor a region needs.
    """
    tree = keep_hooks_that_compute(graph, RegionTree(graph, collect_regions(graph, recording.regions)))
    tree = tree.without(graph, {r for r in tree.regions if not r.has_rule and not _runs(r)})
    for node in list(graph.nodes):
        if node.op == "call_function" and not node.users and is_check_of_sizes(node.target):
            graph.erase_node(node)
    kept = {x for r in tree.regions if _runs(r) for x in (*r.inputs, *r.outputs) if isinstance(x, Node)}
    graph.eliminate_dead_code(lambda node: bool(node.is_impure()) or node in kept)
    # the same regions, of the nodes that are left
    tree = tree.without(graph, ())
    moved = hoist_sizes(tree)
    if moved:
        tree = RegionTree(graph, _outside_functions(graph, tree, moved))
    check_function_calls(tree)
    return tree


def _runs(region: Region) -> bool:
    """Whether the aligned graph runs a region as one call: never inside an autograd function, which runs as a whole."""
    return region.runs_as_one and not any(isinstance(r, FunctionCall) for r in list(region.ancestors)[1:])


def _outside_functions(graph: Graph, tree: RegionTree, moved: set[Node]) -> dict[Node, Region]:
    """The innermost region of each operator, after some were moved out of calls of autograd functions."""
    innermost: dict[Node, Region] = {}
    for node in graph.nodes:
        call = tree.function_call_of(node)
        region = call.parent if call is not None and node in moved else tree.region_of(node)
        if region is not None:
            innermost[node] = region
    return innermost
