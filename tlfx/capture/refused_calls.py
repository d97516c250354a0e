"""Calls that a captured graph cannot repeat: they are refused where the forward makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tlfx._torch import is_fake
from tlfx.capture.callers import Refuse, place, refusing, unless_in_torch
from tlfx.capture.model_class import class_name
from tlfx.capture.refused_randomness import refused_randomness
from tlfx.capture.refused_settings import refused_settings
from tlfx.capture.surroundings import package_of_caller, replaced
from tlfx.errors import CaptureError

__all__ = ["refused_calls"]

_GRADIENT: Any = Tensor.grad
_GRADIENT_NODE: Any = Tensor.grad_fn
_BACKWARD = (
    "computes gradients inside ({}), which a captured graph cannot follow: align the part of the model before it, or "
    "compute them in a torch.autograd.Function"
)
_NODES = (
    "registers hooks on the graph of gradients, which a captured graph does not have: use Tensor.register_hook, which "
    "acts at each aligned call"
)
_BACKWARD_HOOKS = (
    "registers a backward hook on a module ({}), which a captured graph does not repeat: register it once, outside of "
    "the forward, or use Tensor.register_hook"
)
_SAVED = (
    "changes tensors that autograd saves (saved_tensors_hooks), which a captured graph does not repeat: do it "
    "around the call of the model"
)
_PACKED = (
    "packs sequences ({}), whose tokens have no fixed positions, so that labels cannot follow: pad them, and mask "
    "what is padding"
)
_FORWARD_MODE = (
    "computes derivatives by forward-mode differentiation ({}), which a captured graph cannot follow: align the part "
    "of the model before it, or compute them in a torch.autograd.Function"
)
_DATA = "assigns Tensor.data, which a captured graph cannot repeat: use copy_ under torch.no_grad()"


@contextlib.contextmanager
def refused_calls(model: nn.Module, note_gradients: Callable[[], None]) -> Iterator[None]:
    """Raise CaptureError where a forward computes or reads gradients, removes hooks that it has not registered,
    registers backward hooks, changes what autograd saves, sets random states or settings of torch, assigns Tensor.data,
    or converts tensors to NumPy.

    ``note_gradients`` is called where it reads Tensor.grad_fn."""

    def refuse(reason: str) -> None:
        raise CaptureError(f"the forward of {class_name(model)} {reason}\n{place(model)}")

    with contextlib.ExitStack() as stack:
        for owner, name, value in (*_refused(refuse), *_watched(refuse, note_gradients)):
            stack.enter_context(replaced(owner, name, value))
        stack.enter_context(refused_randomness(refuse))
        stack.enter_context(refused_settings(refuse))
        yield


def _refused(refuse: Refuse) -> Iterator[tuple[Any, str, Any]]:
    """Functions and methods that are refused whenever they are called: owners, names, and what replaces them."""
    for owner, name in ((torch.autograd, "grad"), (torch.autograd, "backward"), (Tensor, "backward")):
        shown = f"{'Tensor' if owner is Tensor else 'torch.autograd'}.{name}"
        yield owner, name, refusing(refuse, _BACKWARD.format(shown))
    for name in ("enter_dual_level", "make_dual"):
        yield torch.autograd.forward_ad, name, refusing(refuse, _FORWARD_MODE.format("torch.func.jvp"))
    yield torch.autograd.graph, "register_multi_grad_hook", refusing(refuse, _NODES)
    yield torch.nn.utils.rnn.PackedSequence, "__new__", refusing(refuse, _PACKED.format("pack_padded_sequence"))


def _watched(refuse: Refuse, note_gradients: Callable[[], None]) -> Iterator[tuple[Any, str, Any]]:
    """Functions, methods and attributes that are refused depending on who uses them, and for what."""
    for name in ("numpy", "__array__"):
        yield Tensor, name, _without_numpy(refuse, getattr(Tensor, name))
    yield Tensor, "grad", _gradient(refuse)
    yield Tensor, "grad_fn", _gradient_node(refuse, note_gradients)
    yield Tensor, "data", _data(refuse)
    edge = torch.autograd.graph.get_gradient_edge
    yield torch.autograd.graph, "get_gradient_edge", unless_in_torch(refuse, edge, _NODES)
    for name in ("register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"):
        yield nn.Module, name, unless_in_torch(refuse, getattr(nn.Module, name), _BACKWARD_HOOKS.format(name))
    hooks = torch.autograd.graph.saved_tensors_hooks
    yield hooks, "__enter__", _saved(refuse, hooks.__enter__)
    # handles are numbered: those below the next number were registered before the forward
    yield RemovableHandle, "remove", _removing(refuse, RemovableHandle.next_id)


def _saved(refuse: Refuse, original: Callable[..., Any]) -> Callable[..., Any]:
    others = unless_in_torch(refuse, original, _SAVED)

    def enter(hooks: Any) -> Any:  # save_on_cpu moves tensors and changes no values
        return (original if isinstance(hooks, torch.autograd.graph.save_on_cpu) else others)(hooks)

    return enter


def _data(refuse: Refuse) -> property:
    data: Any = Tensor.data

    def write(tensor: Tensor, value: Tensor) -> None:
        if is_fake(tensor) and package_of_caller() != "torch":
            refuse(_DATA)
        data.__set__(tensor, value)

    return property(data.__get__, write)


def _without_numpy(refuse: Refuse, original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_fake(tensor):
            refuse(
                "converts a tensor to NumPy, where neither gradients nor labels can follow: use functions of torch, or "
                "align the part of the model before it"
            )
        return original(tensor, *args, **kwargs)

    return convert


def _gradient(refuse: Refuse) -> property:
    def read(tensor: Tensor) -> Tensor | None:
        if package_of_caller() != "torch":
            refuse(
                "reads the gradient of a tensor (Tensor.grad), which would be that of the time of capture: read it "
                "after backward, outside of the forward"
            )
        gradient: Tensor | None = _GRADIENT.__get__(tensor)
        return gradient

    return property(read, _GRADIENT.__set__)


class _Node:
    """Stands for a node of the graph of gradients, for code of the model: hooks on it, and on those that it leads to,
    are refused."""

    def __init__(self, node: Any, refuse: Refuse) -> None:
        self._node, self._refuse = node, refuse

    def __getattr__(self, name: str) -> Any:
        if name in ("register_hook", "register_prehook"):
            self._refuse(_NODES)
        attribute = getattr(self._node, name)
        if name == "next_functions":
            return tuple((node and _Node(node, self._refuse), number) for node, number in attribute)
        return _Node(attribute, self._refuse) if isinstance(attribute, torch.autograd.graph.Node) else attribute


def _gradient_node(refuse: Refuse, note: Callable[[], None]) -> property:
    def read(tensor: Tensor) -> Any:
        node = _GRADIENT_NODE.__get__(tensor)
        is_torch = package_of_caller() == "torch"
        if not is_torch:
            note()
        return node if node is None or is_torch else _Node(node, refuse)

    return property(read)


def _removing(refuse: Refuse, first: int) -> Callable[[RemovableHandle], None]:
    """The method by which handles from number ``first`` on, those of the forward itself, are removed."""
    original = RemovableHandle.remove

    def remove(handle: RemovableHandle) -> None:
        if handle.id < first:
            refuse(
                "removes a hook that was registered before, which an aligned call could do only once: remove it "
                "outside of the forward, or register it once and let it do nothing where it must not"
            )
        original(handle)

    return remove
