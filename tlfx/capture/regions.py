"""Regions: the parts of a captured graph that stand for one call, as a tree.

A region is a call of a module with hooks (those that fully_shard gives a module among them), a call under
torch.utils.checkpoint, a call of a module that has a rule, or a call of a torch.autograd.Function. Propagation reads
the calls that have a rule, rewriting reads the region that a label belongs to, and segments run each region as the call
that it stands for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import Graph, Node

from tlfx._torch import HOOKS, TreeSpec, tree_unflatten

__all__ = ["CallRegion", "Checkpoint", "FunctionCall", "HookRun", "HookedCall", "LeafCall", "Region", "RegionTree"]

FORWARD_HOOKS = HOOKS[:2]


@dataclass(eq=False, kw_only=True)
class Region:
    """A part of a graph: its flat inputs and outputs, with nodes for tensors and sizes."""

    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    parent: Region | None = None
    nodes: list[Node] = field(default_factory=list)
    """The operators that it contains, those of inner regions included, in the order of the graph."""

    @property
    def ancestors(self) -> Iterator[Region]:
        """The region itself and all regions around it, the innermost first."""
        region: Region | None = self
        while region is not None:
            yield region
            region = region.parent

    @property
    def has_rule(self) -> bool:
        """Whether labels follow a rule of the region, not the operators in it."""
        return False

    @property
    def runs_as_one(self) -> bool:
        """Whether the aligned graph runs the region as one call, so that all its inputs and outputs are needed."""
        return False


@dataclass(eq=False, kw_only=True)
class CallRegion(Region):
    """A call of a module or of an autograd function, with the structure of its arguments."""

    subject: Any
    """The module, or the class of the function: what a rule is registered for, by class, and given."""
    spec: TreeSpec
    noun: ClassVar[str] = "a module"
    as_ruled: ClassVar[str] = "a leaf module (it has a rule)"
    """What messages say of a call with a rule."""

    @property
    def name(self) -> str:
        """Name of the class that is called."""
        return self.kind.__name__

    @property
    def kind(self) -> type:
        """The class that is called, for which a rule is looked up."""
        return self.subject if isinstance(self.subject, type) else type(self.subject)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        args, kwargs = tree_unflatten(self.inputs, self.spec)
        return tuple(args), dict(kwargs)

    @property
    def results(self) -> list[Node]:
        """The tensors that the call returns."""
        return [x for x in self.outputs if isinstance(x, Node)]

    @property
    def last(self) -> Node:
        """The last node of the call: nodes after it can read all outputs."""
        return self.nodes[-1]


@dataclass(eq=False, kw_only=True)
class LeafCall(CallRegion):
    """A call of a module that has a rule."""

    subject: nn.Module

    @property
    def has_rule(self) -> bool:
        """True: the module has a rule."""
        return True


@dataclass(eq=False, kw_only=True)
class FunctionCall(CallRegion):
    """A call of a torch.autograd.Function."""

    subject: type[torch.autograd.Function]
    noun = "an autograd function"
    as_ruled = "an autograd function with a rule"
    ruled: bool
    """Whether the class has a rule."""

    @property
    def has_rule(self) -> bool:
        """Whether the class has a rule."""
        return self.ruled

    @property
    def runs_as_one(self) -> bool:
        """True: the backward is that of the function."""
        return True


@dataclass(eq=False, kw_only=True)
class HookedCall(CallRegion):
    """A call of a module with hooks: the structure of its output, and the hooks that are computed in the graph."""

    subject: nn.Module
    out_spec: TreeSpec = field(init=False)
    computed: set[int] = field(default_factory=set)
    """Numbers of the hooks that are a part of the graph."""
    failed: dict[int, str] = field(default_factory=dict)
    """Why hooks could not be captured, by their numbers."""

    @property
    def runs_as_one(self) -> bool:
        """Whether the module has hooks that are not computed in the graph, and so fire at every call."""
        return not {k for kind in HOOKS for k in vars(self.subject)[kind]} <= self.computed


@dataclass(eq=False, kw_only=True)
class Checkpoint(Region):
    """A call under torch.utils.checkpoint, with its options about the random state and contexts."""

    options: dict[str, Any]
    reentrant: bool = False
    """Whether it is reentrant: then its inputs are those that decide whether there are gradients."""

    @property
    def runs_as_one(self) -> bool:
        """True: it is checkpointed again."""
        return True


@dataclass(eq=False, kw_only=True)
class HookRun(Region):
    """A run of one hook of a module call, while it is captured."""

    call: HookedCall
    number: int
    changes: bool = False
    """Whether the hook returned a tensor other than those it was given."""


class RegionTree:
    """The regions of a graph; ``innermost`` gives the region that contains each operator, if any.

    >>> graph = Graph()
    >>> x = graph.placeholder("x")
    >>> y = graph.call_function(abs, (x,))
    >>> outer = Checkpoint(options={})
    >>> tree = RegionTree(graph, {y: Checkpoint(options={}, parent=outer)})
    >>> [tree.path_of(node).index(outer) if tree.path_of(node) else None for node in graph.nodes]
    [None, 0]
    >>> outer.nodes
    [abs_1]
    """

    def __init__(self, graph: Graph, innermost: Mapping[Node, Region]) -> None:
        self._innermost = {node: innermost[node] for node in graph.nodes if node in innermost}
        self.regions = list(dict.fromkeys(r for node in self._innermost for r in self.path_of(node)))
        for region in self.regions:
            region.nodes = []
        for node in self._innermost:
            for region in self.path_of(node):
                region.nodes.append(node)

    def region_of(self, node: Node) -> Region | None:
        """The innermost region that contains a node."""
        return self._innermost.get(node)

    def path_of(self, node: Node) -> tuple[Region, ...]:
        """The regions that contain a node, the outermost first."""
        region = self._innermost.get(node)
        return () if region is None else tuple(reversed(list(region.ancestors)))

    def ruled_call_of(self, node: Node) -> CallRegion | None:
        """The call with a rule that contains a node, the outermost of several."""
        return next((r for r in self.path_of(node) if r.has_rule and isinstance(r, CallRegion)), None)

    def function_call_of(self, node: Node) -> FunctionCall | None:
        """The call of an autograd function that contains a node, the outermost of several."""
        return next((r for r in self.path_of(node) if isinstance(r, FunctionCall)), None)

    @property
    def function_calls(self) -> list[FunctionCall]:
        """The calls of autograd functions that are not inside another such call."""
        calls = [r for r in self.regions if isinstance(r, FunctionCall)]
        return [c for c in calls if not any(isinstance(r, FunctionCall) for r in list(c.ancestors)[1:])]

    def sources_of(self, node: Node) -> list[Node]:
        """The inputs of a node; for a node in a call with a rule, the arguments of the call."""
        call = self.ruled_call_of(node)
        return node.all_input_nodes if call is None else [x for x in call.inputs if isinstance(x, Node)]

    def reader_of(self, node: Node) -> Node:
        """The node at which the reads of a node count; for a node in a call with a rule, the last node of the call."""
        call = self.ruled_call_of(node)
        return node if call is None else call.last

    def without(self, graph: Graph, dropped: Collection[Region]) -> RegionTree:
        """The tree without some regions; their nodes belong to the next outer region."""

        def kept(region: Region | None) -> Region | None:
            return next((r for r in region.ancestors if r not in dropped), None) if region is not None else None

        for region in self.regions:
            region.parent = kept(region.parent)
        innermost = {node: kept(region) for node, region in self._innermost.items()}
        return RegionTree(graph, {node: region for node, region in innermost.items() if region is not None})

    def copied(self, graph: Graph, copies: Mapping[Node, Node], innermost: Mapping[Node, Region]) -> RegionTree:
        """The tree of a copy of the graph: ``copies`` maps inputs and outputs to its nodes, ``innermost`` maps its
        nodes to regions of this tree."""
        made = {region: copy(region) for region in self.regions}
        for region in made.values():
            region.parent = None if region.parent is None else made[region.parent]
            region.inputs, region.outputs = (
                [copies.get(x) if isinstance(x, Node) else x for x in leaves]
                for leaves in (region.inputs, region.outputs)
            )
        return RegionTree(graph, {node: made[region] for node, region in innermost.items()})
