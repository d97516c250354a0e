"""Hooks: calls of modules with hooks are regions, and so is each run of a hook while the model is captured.

Capture traces hooks like any other code. A hook whose results the graph reads, such as one that changes the output of
its module, is a part of the computation, and labels follow it; any other hook fires at every aligned call. Hooks of
torch.distributed, which gather parameters, never run while a model is captured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from tlfx._torch import HOOKS, tree_flatten, tree_leaves, tree_map
from tlfx.capture.region_recorder import RegionRecorder
from tlfx.capture.regions import FORWARD_HOOKS, HookedCall, HookRun, RegionTree
from tlfx.capture.sharding import casts_of
from tlfx.errors import CaptureError
from tlfx.graph.aliasing import storage_of, written_storages

__all__ = ["is_changed", "keep_hooks_that_compute", "recorded_hooks"]

_BACKWARD_HOOKS = HOOKS[len(FORWARD_HOOKS) :]


def is_changed(result: Any, given: tuple[Any, ...]) -> bool:
    """Whether a hook returned a value other than those it was given."""
    known = {id(x) for x in tree_leaves(given)}
    return result is not None and any(id(x) not in known for x in tree_leaves(result))


class _HookRecorder:
    """Records calls of modules with hooks, and the hooks that run in them."""

    def __init__(self, recorder: RegionRecorder) -> None:
        self.recorder = recorder
        self.calls: list[HookedCall] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs before all hooks of a module."""
        leaves, spec = tree_flatten((args, kwargs))
        self.calls.append(HookedCall(subject=module, spec=spec))
        self.recorder.begin(self.calls[-1], leaves)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Runs after all hooks of a module. One that returns what it takes (Identity) gets an operator, without which
        there would be no region."""
        call = self.calls.pop()
        given = {id(x) for x in call.inputs if isinstance(x, Tensor)}
        if any(id(x) in given for x in tree_leaves(output)):
            output = tree_map(lambda x: torch.ops.aten.alias(x) if id(x) in given else x, output)
        outputs, call.out_spec = tree_flatten(output)
        self.recorder.end(call, outputs)
        return output

    def recorded(self, number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that is recorded as a region."""

        def recorded(module: nn.Module, *given: Any) -> Any:
            call, result = self.calls[-1], None
            run = HookRun(call=call, number=number)
            self.recorder.begin(run)
            try:
                result = hook(module, *given)
            except Exception as error:  # it reads values, which fake tensors lack; it may still only observe
                call.failed[number] = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
            run.changes = is_changed(result, given)
            self.recorder.end(run)
            return result

        return recorded


@contextlib.contextmanager
def recorded_hooks(model: nn.Module, recorder: RegionRecorder) -> Iterator[None]:
    """Record calls of modules with hooks, except the model itself, whose own call runs its hooks."""
    hooks = _HookRecorder(recorder)
    with contextlib.ExitStack() as stack:
        for module in {m: None for m in model.modules() if m is not model}:
            if any(vars(module)[kind] for kind in HOOKS):
                stack.enter_context(_recorded_hooks_of(module, hooks))
        yield


@contextlib.contextmanager
def _recorded_hooks_of(module: nn.Module, hooks: _HookRecorder) -> Iterator[None]:
    kept = {kind: dict(vars(module)[kind]) for kind in HOOKS}
    for kind in FORWARD_HOOKS:
        for number, hook in kept[kind].items():
            vars(module)[kind][number] = _idle(module, kind) if _is_distributed(hook) else hooks.recorded(number, hook)
    # for these, a call of the module puts an autograd function of torch around its inputs and outputs
    for kind in _BACKWARD_HOOKS:
        vars(module)[kind].clear()
    # around all other hooks: the first one in, the last one out
    first = module.register_forward_pre_hook(hooks.enter, with_kwargs=True, prepend=True)
    last = module.register_forward_hook(hooks.leave)
    try:
        yield
    finally:
        first.remove()
        last.remove()
        for kind, before in kept.items():
            vars(module)[kind].clear()
            vars(module)[kind].update(before)


def _is_distributed(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")


def _idle(module: nn.Module, kind: str) -> Callable[..., Any]:
    """A hook that casts as a hook of torch.distributed does, without touching parameters."""
    given, made = casts_of(module)
    if kind == "_forward_pre_hooks":
        # a hook that takes keyword arguments returns them too
        return lambda module, args, kwargs=None: given(args) if kwargs is None else (given(args), given(kwargs))
    return lambda *given: made(given[-1])


def keep_hooks_that_compute(graph: Graph, tree: RegionTree) -> RegionTree:
    """Remove hooks that only observe from a graph, and note those that it computes; returns the tree without hook runs.

    Raises CaptureError for a hook that changes what is computed and could not be captured.
    """
    runs = [r for r in tree.regions if isinstance(r, HookRun)]
    for run in runs:
        _judge(run, graph)
    return tree.without(graph, set(runs))


def _judge(run: HookRun, graph: Graph) -> None:
    """Keep the nodes of a hook if the graph depends on them, else erase them."""
    alive = set(graph.nodes)
    nodes = [node for node in run.nodes if node in alive]
    own = set(nodes)
    read = any(_is_read(n, own) for n in nodes) or _writes_beyond(nodes, own, graph)
    if not read and not run.changes:
        for node in reversed(nodes):
            graph.erase_node(node)
        return
    if run.number in run.call.failed:
        raise CaptureError(
            f"a hook of {run.call.name} changes what the module computes, and cannot be captured as "
            f"a graph ({run.call.failed[run.number]}): write it without reading values of tensors (an if, .item()), "
            "or remove it"
        )
    run.call.computed.add(run.number)


def _is_read(node: Node, own: Collection[Node]) -> bool:
    """Whether a node is read outside of those that a hook owns."""
    return any(user not in own for user in node.users)


def _writes_beyond(nodes: list[Node], own: Collection[Node], graph: Graph) -> bool:
    """Whether a hook writes in place to memory that is read outside of it."""
    written = written_storages(nodes)
    return bool(written) and any(n not in own and storage_of(n) in written and _is_read(n, own) for n in graph.nodes)
