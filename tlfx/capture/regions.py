"""Regions: the parts of a captured graph that must run as the model runs them, seen while it is captured.

A region is a call of a module with hooks (those that fully_shard gives a module among them), or a call under
torch.utils.checkpoint. Capture runs through both as through any other code; marks in the graph tell where each begins
and ends. A hook whose results the graph reads, such as one that changes what its module returns, is a part of the
computation, and labels follow it; any other only looks on, and fires at every aligned call instead. Hooks of
torch.distributed, which gather parameters, never run while a model is captured.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils import checkpoint as checkpointing
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from tlfx._torch import checkpoint_generator_name
from tlfx.capture.sharding import casts_of
from tlfx.errors import CaptureError
from tlfx.graph.aliasing import storage_of, written_storages

__all__ = [
    "FORWARD_HOOKS",
    "Checkpoint",
    "HookedCall",
    "Region",
    "collect_regions",
    "is_changed",
    "is_needed",
    "regions_of",
    "seen_regions",
    "stay_in_regions",
]

_REGIONS = "tlfx_regions"
_SHOWN = "tlfx_shown"


@dataclass(eq=False, kw_only=True)
class Region:
    """What lies between two marks: nodes in place of the tensors that go in and come out."""

    leaves: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


@dataclass(eq=False, kw_only=True)
class HookedCall(Region):
    """A call of a module with hooks: the structure of its arguments and output, and the hooks that are computed."""

    module: nn.Module
    spec: TreeSpec
    out_spec: TreeSpec = field(init=False)
    computed: set[int] = field(default_factory=set)
    """Numbers of the hooks that are a part of the graph."""
    failed: dict[int, str] = field(default_factory=dict)
    """What was wrong with hooks that could not be captured, by their numbers."""

    @property
    def fires(self) -> bool:
        """Whether the module has hooks that are not."""
        hooks = {k for kind in _KINDS for k in vars(self.module)[kind]}
        return not hooks <= self.computed


@dataclass(eq=False, kw_only=True)
class Checkpoint(Region):
    """A call under torch.utils.checkpoint, with its options about the random state and contexts."""

    options: dict[str, Any]


@dataclass(eq=False, kw_only=True)
class _Hook(Region):
    """A hook of a module call."""

    call: HookedCall
    number: int
    changes: bool = False
    """Whether it returned anything but what it was given."""


FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)
_BACKWARD = ("_backward_pre_hooks", "_backward_hooks")
_KINDS = (*FORWARD_HOOKS, *_BACKWARD)


def regions_of(node: Node) -> tuple[Region, ...]:
    """The regions that a node lies in, the outermost first."""
    found: tuple[Region, ...] = node.meta.get(_REGIONS, ())
    return found


def is_changed(result: Any, given: tuple[Any, ...]) -> bool:
    """Whether a hook returned anything but what it was given."""
    known = {id(x) for x in tree_leaves(given)}
    return result is not None and any(id(x) not in known for x in tree_leaves(result))


def is_needed(node: Node) -> bool:
    """Whether a node that the graph does not read has to stay: it has an effect, or hooks will see it."""
    return bool(node.is_impure()) or _SHOWN in node.meta


def stay_in_regions(node: Node, after: Node) -> None:
    """Put a node that was inserted after another into the regions of that one."""
    if _REGIONS in after.meta:
        node.meta[_REGIONS] = after.meta[_REGIONS]


@torch.library.custom_op("tlfx::bound", mutates_args=(), schema="(Tensor[] values, int region, bool begins) -> ()")
def _bound(values: Sequence[Tensor], region: int, begins: bool) -> None:
    """Tells a graph that a region begins with these values or ends with them."""


@_bound.register_fake
def _(values: Sequence[Tensor], region: int, begins: bool) -> None:
    return None


torch.fx.node.has_side_effect(torch.ops.tlfx.bound.default)


class _Seen:
    """The regions of a capture, in the order in which they begin, and those that are open."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.calls: list[HookedCall] = []

    def begin(self, region: Region, leaves: Sequence[Any] = ()) -> None:
        region.leaves = list(leaves)
        torch.ops.tlfx.bound([x for x in leaves if isinstance(x, Tensor)], len(self.regions), True)
        self.regions.append(region)

    def end(self, region: Region, outputs: Sequence[Any] = ()) -> None:
        region.outputs = list(outputs)
        number = self.regions.index(region)
        torch.ops.tlfx.bound([x for x in outputs if isinstance(x, Tensor)], number, False)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before all hooks of a module."""
        leaves, spec = tree_flatten((args, kwargs))
        self.calls.append(HookedCall(module=module, spec=spec))
        self.begin(self.calls[-1], leaves)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """After all hooks of a module."""
        outputs, self.calls[-1].out_spec = tree_flatten(output)
        self.end(self.calls.pop(), outputs)

    def hook(self, number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that is a region."""

        def seen(module: nn.Module, *given: Any) -> Any:
            call, result = self.calls[-1], None
            region = _Hook(call=call, number=number)
            self.begin(region)
            try:
                result = hook(module, *given)
            except Exception as error:  # it reads values, which are not there yet, and may well look on at run time
                call.failed[number] = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
            region.changes = is_changed(result, given)
            self.end(region)
            return result

        return seen

    def checkpointed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """In place of the generator that checkpoints what runs between its steps."""
        signature = inspect.signature(original)

        def marked(*args: Any, **kwargs: Any) -> Iterator[None]:
            given = signature.bind(*args, **kwargs).arguments
            options = {k: given[k] for k in ("preserve_rng_state", "context_fn") if k in given}
            region = Checkpoint(options={k: v for k, v in options.items() if v is not checkpointing.noop_context_fn})
            self.begin(region)
            yield
            self.end(region)

        return marked

    def checkpointed_reentrantly(self, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        """In place of the autograd function that runs without gradients first."""
        region = Checkpoint(options={"preserve_rng_state": preserve_rng_state})
        self.begin(region)
        result = function(*args)
        self.end(region)
        return result


@contextlib.contextmanager
def seen_regions(model: nn.Module) -> Iterator[list[Region]]:
    """While the context is open, what a model runs under hooks or torch.utils.checkpoint is marked; gives the list of
    those regions. The hooks of the model itself are left out: its own call runs them."""
    seen = _Seen()
    with contextlib.ExitStack() as stack:
        for module in {m: None for m in model.modules() if m is not model}:
            if any(vars(module)[kind] for kind in _KINDS):
                stack.enter_context(_seen_hooks(module, seen))
        stack.enter_context(_seen_checkpoints(seen))
        yield seen.regions


@contextlib.contextmanager
def _seen_hooks(module: nn.Module, seen: _Seen) -> Iterator[None]:
    kept = {kind: dict(vars(module)[kind]) for kind in _KINDS}
    for kind in FORWARD_HOOKS:
        for number, hook in kept[kind].items():
            vars(module)[kind][number] = _idle(module, kind) if _is_distributed(hook) else seen.hook(number, hook)
    for kind in _BACKWARD:
        vars(module)[kind].clear()
    first = module.register_forward_pre_hook(seen.enter, with_kwargs=True, prepend=True)
    last = module.register_forward_hook(seen.leave)
    try:
        yield
    finally:
        first.remove()
        last.remove()
        for kind, hooks in kept.items():
            vars(module)[kind].clear()
            vars(module)[kind].update(hooks)


def _is_distributed(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")


def _idle(module: nn.Module, kind: str) -> Callable[..., Any]:
    """What a hook of torch.distributed does to types, without what it does to parameters."""
    given, made = casts_of(module)
    if kind == "_forward_pre_hooks":
        return lambda module, args, kwargs=None: given(args) if kwargs is None else (given(args), given(kwargs))
    return lambda *given: made(given[-1])


@contextlib.contextmanager
def _seen_checkpoints(seen: _Seen) -> Iterator[None]:
    """Both kinds of checkpoint, where the function that everyone calls looks them up."""
    name = checkpoint_generator_name()
    generator, function = getattr(checkpointing, name), checkpointing.CheckpointFunction
    try:
        setattr(checkpointing, name, seen.checkpointed(generator))
        checkpointing.CheckpointFunction = SimpleNamespace(apply=seen.checkpointed_reentrantly)  # type: ignore[misc,assignment]
        yield
    finally:
        setattr(checkpointing, name, generator)
        checkpointing.CheckpointFunction = function  # type: ignore[misc]


def collect_regions(graph: Graph, regions: Sequence[Region]) -> None:
    """Tell every node of the regions that it lies in, and take the marks out."""
    open_regions: list[Region] = []
    inside: dict[Region, list[Node]] = {region: [] for region in regions}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is not torch.ops.tlfx.bound.default:
            node.meta[_REGIONS] = tuple(open_regions)
            for region in open_regions:
                inside[region].append(node)
            continue
        values, number, begins = node.args
        region = regions[number]
        _name(region.leaves if begins else region.outputs, values)
        open_regions.append(region) if begins else open_regions.remove(region)
        graph.erase_node(node)
    for region in regions:
        if isinstance(region, _Hook):
            _judge(region, inside[region], graph)
    fire = {r for r in regions if isinstance(r, Checkpoint) or (isinstance(r, HookedCall) and r.fires)}
    for node in graph.nodes:
        kept = tuple(r for r in node.meta.pop(_REGIONS, ()) if r in fire)
        if kept:
            node.meta[_REGIONS] = kept
    for region in fire:
        for node in (x for x in (*region.leaves, *region.outputs) if isinstance(x, Node)):
            node.meta[_SHOWN] = True


def _name(leaves: list[Any], values: Sequence[Node]) -> None:
    """Nodes in place of the tensors among leaves; nothing in place of sizes, which no mark can hold."""
    given = iter(values)
    leaves[:] = [next(given) if isinstance(x, Tensor) else None if isinstance(x, _SIZES) else x for x in leaves]


def _judge(hook: _Hook, nodes: list[Node], graph: Graph) -> None:
    """A hook that the graph depends on is a part of it; of any other nothing is left in it."""
    own = set(nodes)
    read = any(_is_read(n, own) for n in nodes) or _writes_beyond(nodes, own, graph)
    if not read and not hook.changes:
        for node in reversed(nodes):
            graph.erase_node(node)
        return
    if hook.number in hook.call.failed:
        raise CaptureError(
            f"a hook of {type(hook.call.module).__name__} changes what the module computes, and cannot be captured as "
            f"a graph ({hook.call.failed[hook.number]}): write it without reading values of tensors (an if, .item()), "
            "or remove it"
        )
    hook.call.computed.add(hook.number)


def _is_read(node: Node, own: set[Node]) -> bool:
    """Whether a node is read outside of those that a hook owns."""
    return any(user not in own and user.target is not torch.ops.tlfx.mark.default for user in node.users)


def _writes_beyond(nodes: list[Node], own: set[Node], graph: Graph) -> bool:
    """Whether a hook writes in place to memory that is read outside of it."""
    written = written_storages(nodes)
    return bool(written) and any(n not in own and storage_of(n) in written and _is_read(n, own) for n in graph.nodes)
