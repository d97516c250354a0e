"""Autograd functions: calls of a user's torch.autograd.Function are regions, so that their own backward runs.

Capture traces the forward of the function, so that labels follow it; an aligned graph calls the function itself. Calls
are recorded in ``forward``, not in ``apply``, because a module may hold a bound ``apply`` (``swish = Swish.apply``).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.autograd import Function
from torch.fx import Node

from tlfx._torch import is_context_of, is_view, tree_flatten, tree_leaves, tree_map, version, without_function_modes
from tlfx.capture.region_recorder import RegionRecorder
from tlfx.capture.regions import FunctionCall, RegionTree
from tlfx.errors import CaptureError
from tlfx.graph.nodes import describe
from tlfx.rules.registry import REGISTRY

__all__ = ["FunctionRecorder", "check_function_calls", "hoist_sizes", "recorded_functions", "source_of"]


class FunctionRecorder:
    """Records calls of autograd functions."""

    def __init__(self, recorder: RegionRecorder) -> None:
        self.recorder = recorder
        self.errors: list[tuple[Exception, type[Function]]] = []
        """The errors that their forwards raised, the innermost function first."""
        self._kept: dict[type[Function], Any] = {}

    def patch(self, function: type[Function]) -> None:
        """Record calls of a function through ``apply``, until :meth:`restore`."""
        if function in self._kept:  # reached before through another base
            return
        # None for a forward that is inherited
        self._kept[function] = vars(function).get("forward")
        function.forward = staticmethod(self._recorded(function, function.forward))  # type: ignore[method-assign]

    def restore(self) -> None:
        """Restore the forward of all functions."""
        for function, forward in self._kept.items():
            if forward is None:
                del function.forward
            else:
                function.forward = forward  # type: ignore[method-assign]

    def _recorded(self, function: type[Function], forward: Callable[..., Any]) -> Callable[..., Any]:
        # forward(ctx, ...) is the form without a setup_context
        with_context = function.setup_context is Function.setup_context

        @functools.wraps(forward)  # apply binds arguments by its signature
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if not _is_applied(function, args, with_context):
                return forward(*args, **kwargs)
            given = args[1:] if with_context else args
            return self._run(function, (given, kwargs), lambda: forward(*args, **kwargs))

        return recorded

    def _run(self, function: type[Function], given: tuple[Any, Any], run: Callable[[], Any]) -> Any:
        leaves, spec = tree_flatten(given)
        if any(isinstance(x, SymFloat | SymBool) for x in leaves):  # the retry with a fixed batch makes it a number
            raise RuntimeError(f"{function.__name__} is given a number that is computed from the batch size")
        if "<locals>" in function.__qualname__:
            _check_closures(function)
        call = FunctionCall(subject=function, spec=spec, ruled=REGISTRY.find_class(function) is not None)
        self.recorder.begin(call, leaves)
        versions = {id(x): version(x) for x in leaves if isinstance(x, Tensor)}
        try:
            with without_function_modes():  # modes set inside end with the call: not for the graph
                result = _distinct(run(), versions)
        except Exception as error:
            self.errors.append((error, function))
            raise
        self.recorder.end(call, tree_leaves(result))
        return result


@contextlib.contextmanager
def recorded_functions(functions: FunctionRecorder) -> Iterator[None]:
    """Record calls of autograd functions other than torch's own, including those of classes defined in the context."""
    before = vars(Function).get("__init_subclass__")

    def patch_new(cls: type[Function], /, **kwargs: Any) -> None:
        super(Function, cls).__init_subclass__(**kwargs)
        functions.patch(cls)

    try:
        for function in _subclasses(Function):
            functions.patch(function)
        Function.__init_subclass__ = classmethod(patch_new)  # type: ignore[assignment]
        yield
    finally:
        if before is None:
            del Function.__init_subclass__
        else:
            Function.__init_subclass__ = before  # type: ignore[method-assign]
        functions.restore()


def _subclasses(kind: type[Function]) -> Iterator[type[Function]]:
    """The subclasses of a function class, except torch's own; a class comes after its own subclasses."""
    for derived in kind.__subclasses__():
        yield from _subclasses(derived)
        if derived.__module__.partition(".")[0] != "torch":
            yield derived


def _is_applied(function: type[Function], args: Sequence[Any], with_context: bool) -> bool:
    """Whether forward runs inside apply of this class, not by itself or from a derived class."""
    if with_context:
        return bool(args) and is_context_of(args[0], function)
    return not torch.is_grad_enabled()  # apply turns gradients off


def _distinct(result: Any, versions: dict[int, int]) -> Any:
    """The result of a forward with a separate node for each tensor: an input that is returned unchanged and a tensor
    that is returned twice become views; none requires a gradient, because apply would detach it after the region."""
    known = set(versions)

    def separate(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in known and version(x) == versions.get(id(x), version(x)):
            return x.view_as(x)
        known.add(id(x))
        made_with_gradient = x.grad_fn is not None and id(x) not in versions and not is_view(x)
        return x.detach_() if made_with_gradient else x

    with torch.no_grad():
        return tree_map(separate, result)


def _check_closures(function: type[Function]) -> None:
    """Raise CaptureError for a class that is defined in a forward and holds tensors or sizes of that call."""
    for name in ("forward", "backward", "setup_context"):
        code = inspect.unwrap(getattr(function, name))
        for variable, value in inspect.getclosurevars(code).nonlocals.items() if inspect.isfunction(code) else ():
            if any(isinstance(x, Tensor | SymInt | SymFloat) for x in tree_leaves(value)):
                raise CaptureError(
                    f"the autograd function {function.__qualname__} holds {variable!r} of the forward that defines it, "
                    f"so that its calls cannot be repeated\n  source: {source_of(function)}\n"
                    "Pass what it needs as an argument of apply."
                )


def hoist_sizes(tree: RegionTree) -> set[Node]:
    """Move arithmetic on sizes out of calls of autograd functions, since the aligned graph omits their inside; returns
    the nodes that were moved."""
    moved: set[Node] = set()
    for call in tree.function_calls:
        first = call.nodes[0]
        inside = set(call.nodes)
        for node in call.nodes:
            if not _is_size(node) or not inside.isdisjoint(node.all_input_nodes):
                continue
            inside.remove(node)
            moved.add(node)
            if node is not first:
                first.prepend(node)
            else:
                first = node.next
    return moved


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), SymInt | SymFloat | SymBool | int | float)


def check_function_calls(tree: RegionTree) -> None:
    """Raise CaptureError where a call of an autograd function reads tensors other than its arguments, or other nodes
    read tensors that it does not return."""
    for call in tree.function_calls:
        inside, given, returned = set(call.nodes), set(call.inputs), set(call.results)
        for node in call.nodes:
            other = [n for n in node.all_input_nodes if n not in inside and n not in given and n.op != "get_attr"]
            if any(not _is_size(n) for n in other):
                raise CaptureError(
                    f"the autograd function {call.name} reads {other[0].name}, a tensor of the model that is not among "
                    f"its arguments\n{describe(node)}\nPass it as an argument of apply."
                )
            if node not in returned and not inside.issuperset(node.users):
                raise CaptureError(
                    f"the autograd function {call.name} computes {node.name}, which is read outside and is not among "
                    f"its outputs\n{describe(node)}\nReturn it from forward."
                )
        if not returned <= inside:
            raise CaptureError(
                f"the autograd function {call.name} returns a tensor that it neither computes nor is given\n"
                f"{describe(call.last)}\nPass it as an argument of apply."
            )


def source_of(function: type[Function]) -> str:
    """File and line of the forward of a function."""
    code = getattr(inspect.unwrap(function.forward), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else "unknown"
