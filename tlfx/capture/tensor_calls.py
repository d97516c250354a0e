"""Calls on tensors that torch.export does not see: gradient hooks, retain_grad and requires_grad_ in a forward.

Each becomes a node of the graph, which makes the call at every aligned call. A hook that holds tensors or sizes of the
forward, in its closure or its default values, is made anew with those of the aligned call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

import torch
from torch import SymInt, Tensor, nn
from torch.fx import Graph, Node

from tlfx._torch import disable_dynamo, is_fake
from tlfx.capture.marks import mark, marks_of
from tlfx.capture.surroundings import package_of_caller, replaced
from tlfx.errors import CaptureError

__all__ = [
    "RecordedHandle",
    "TensorCallRecorder",
    "TensorCalls",
    "call_tensor",
    "data_of",
    "place_tensor_calls",
    "remove_hook",
]

_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_NAMES = (*_HOOKS, "retain_grad", "requires_grad_")
_REQUIRES_GRAD: Any = Tensor.requires_grad
_DATA: Any = Tensor.data


_CALL = "tensor call"
"""The kind of marks of calls on the first tensor, with the other tensors and sizes that its arguments hold."""


@dataclass(eq=False)
class _Call:
    """A call on a tensor; ``held`` are the tensors and sizes of the forward in its arguments."""

    name: str
    args: tuple[Any, ...]
    held: list[Any]
    handle: RecordedHandle | None = None
    """The handle that the call removes, if it does nothing else."""

    def on(self, tensor: Tensor, held: Sequence[Any]) -> Any:
        """Make the call on a tensor with others in place of ``held``."""
        if self.name in (*_HOOKS, "retain_grad") and not tensor.requires_grad:
            return None  # without gradients there is nothing to do, where the model itself would have asked or failed
        return getattr(tensor, self.name)(*_with(self.args, dict(zip(map(id, self.held), held, strict=True))))


class RecordedHandle:
    """Stands for the handle of a hook while a forward is captured."""

    def __init__(self, recorder: TensorCallRecorder, number: int) -> None:
        self._recorder = recorder
        self.number = number

    def remove(self) -> None:
        """Remove the hook, as the aligned graph does."""
        self._recorder.add(_Call("remove", (), [], self))

    def __enter__(self) -> RecordedHandle:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()


class TensorCallRecorder:
    """The calls on tensors in a forward, in their order."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def add(self, call: _Call, tensor: Tensor | None = None) -> None:
        """Mark a call on a tensor, or the removal of a hook."""
        self.calls.append(call)
        mark(_CALL, len(self.calls) - 1, (tensor, *call.held))

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record calls in the context. Raises CaptureError for a hook whose tensors change after it was registered."""
        with contextlib.ExitStack() as stack:
            for name in _NAMES:
                stack.enter_context(replaced(Tensor, name, self._recorded(name, getattr(Tensor, name))))
            # reads stay those of ModeRecorder, which has replaced the attribute before
            reads: Any = getattr(Tensor, "requires_grad")  # noqa: B009
            stack.enter_context(replaced(Tensor, "requires_grad", property(reads.__get__, self._require)))
            stack.enter_context(replaced(Tensor, "data", property(self._data, _DATA.__set__)))
            yield
        for call in self.calls:
            if [id(x) for x in call.held] != [id(x) for x in _held_by(call.args)]:
                raise CaptureError(
                    f"a function given to {call.name} reads variables that the forward assigns after that call, which "
                    "cannot be repeated: assign them before it"
                )

    def _require(self, tensor: Tensor, value: bool) -> None:
        if is_fake(tensor) and package_of_caller() != "torch":
            self.add(_Call("requires_grad_", (value,), []), tensor)
        _REQUIRES_GRAD.__set__(tensor, value)

    def _data(self, tensor: Tensor) -> Tensor:
        if not is_fake(tensor) or package_of_caller() == "torch":
            data: Tensor = _DATA.__get__(tensor)
            return data
        self.add(_Call("data", (), []), tensor)
        return tensor.detach()

    def _recorded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def recorded(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not is_fake(tensor):
                return original(tensor, *args, **kwargs)
            given = (*args, *kwargs.values())  # each of these methods has one parameter at most
            self.add(_Call(name, given, _held_by(given)), tensor)
            if name in _HOOKS:
                return RecordedHandle(self, len(self.calls) - 1)
            return original(tensor, *args, **kwargs) if name == "requires_grad_" else None

        return recorded


def _is_held(x: Any) -> bool:
    return isinstance(x, SymInt) or (isinstance(x, Tensor) and is_fake(x))


def _parts(value: Any) -> list[Any]:
    """What a function, a partial or a tuple holds."""
    if isinstance(value, FunctionType):
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    return list(value) if type(value) is tuple else []


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _held_by(value: Any, seen: frozenset[int] = frozenset()) -> list[Any]:
    """The tensors and sizes of the forward that functions hold, tensors first, each once."""
    if _is_held(value):
        return [value]
    if id(value) in seen:  # a function that refers to itself
        return []
    held = [x for part in _parts(value) for x in _held_by(part, seen | {id(value)})]
    each = list({id(x): x for x in held}.values())
    return sorted(each, key=lambda x: not isinstance(x, Tensor))


def _with(value: Any, values: dict[int, Any]) -> Any:
    """A function, partial or tuple with others in place of what it holds; unchanged objects are kept."""
    if id(value) in values:
        return values[id(value)]
    if not any(id(x) in values for x in _held_by(value)):
        return value
    if isinstance(value, functools.partial):
        keywords = {k: _with(x, values) for k, x in value.keywords.items()}
        return functools.partial(_with(value.func, values), *_with(value.args, values), **keywords)
    if isinstance(value, FunctionType):
        cells = tuple(_cell_with(cell, values) for cell in value.__closure__ or ())
        defaults = _with(value.__defaults__, values)
        made = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
        made.__kwdefaults__ = {k: _with(x, values) for k, x in (value.__kwdefaults__ or {}).items()}
        return made
    return tuple(_with(x, values) for x in value)


def _cell_with(cell: CellType, values: dict[int, Any]) -> CellType:
    held = _contents(cell)
    other = _with(held, values)
    return cell if other is held else CellType(other)


class TensorCalls(nn.Module):
    """The calls on tensors that a graph makes, as a part of the graph's module."""

    def __init__(self, calls: Sequence[_Call]) -> None:
        super().__init__()
        self.calls = tuple(calls)


@disable_dynamo
def call_tensor(calls: TensorCalls, number: int, tensor: Tensor, held: Sequence[Any]) -> Any:
    """Make a call on a tensor; returns its handle, if it has one."""
    return calls.calls[number].on(tensor, held)


@disable_dynamo
def remove_hook(handle: Any) -> None:
    """Remove a hook that was registered before, if there were gradients."""
    if handle is not None:
        handle.remove()


def data_of(tensor: Tensor) -> Tensor:
    """Tensor.data: writes to it are not seen by autograd."""
    return tensor.data


for _function in (call_tensor, remove_hook):
    torch.fx.node.has_side_effect(_function)


def place_tensor_calls(graph: Graph, path: str, recorder: TensorCallRecorder) -> dict[int, Node]:
    """Replace marks by the calls that they stand for; returns the nodes of the calls by number."""
    placed: dict[int, Node] = {}
    with graph.inserting_after([n for n in graph.nodes if n.op == "placeholder"][-1]):
        held = graph.get_attr(path)
    for node, (values, sizes, _, number, _) in marks_of(graph, _CALL).items():
        handle = recorder.calls[number].handle
        if recorder.calls[number].name == "data":
            node.next.target = data_of  # in place of detach, whose writes autograd counts
            graph.erase_node(node)
            continue
        with graph.inserting_before(node):
            if handle is not None:
                placed[number] = graph.call_function(remove_hook, (placed[handle.number],))
            else:
                args = (held, number, values[0], (*values[1:], *sizes))
                placed[number] = graph.call_function(call_tensor, args)
        placed[number].meta = {k: v for k, v in node.meta.items() if k != "val"}
        graph.erase_node(node)
    return placed
