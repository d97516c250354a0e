"""Calls that a captured graph cannot repeat: they are refused where the forward makes them."""

from __future__ import annotations

import contextlib
import inspect
import linecache
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tlfx._torch import is_fake
from tlfx.capture.model_class import class_name
from tlfx.capture.surroundings import replaced
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


@contextlib.contextmanager
def refused_calls(model: nn.Module) -> Iterator[None]:
    """Raise CaptureError where a forward computes or reads gradients, removes hooks that it has not registered, or
    converts tensors to NumPy."""
    paths = {id(module): path for path, module in model.named_modules()}

    def refuse(reason: str) -> None:
        raise CaptureError(f"the forward of {class_name(model)} {reason}\n{_place(model, paths)}")

    with contextlib.ExitStack() as stack:
        for owner, name in ((torch.autograd, "grad"), (torch.autograd, "backward"), (Tensor, "backward")):
            shown = f"{'Tensor' if owner is Tensor else 'torch.autograd'}.{name}"
            stack.enter_context(replaced(owner, name, _refusing(refuse, _BACKWARD.format(shown))))
        for name in ("numpy", "__array__"):
            stack.enter_context(replaced(Tensor, name, _without_numpy(refuse, getattr(Tensor, name))))
        stack.enter_context(replaced(Tensor, "grad", _gradient(refuse)))
        stack.enter_context(replaced(Tensor, "grad_fn", _gradient_node(refuse)))
        stack.enter_context(replaced(torch.autograd.graph, "register_multi_grad_hook", _refusing(refuse, _NODES)))
        stack.enter_context(replaced(RemovableHandle, "remove", _removing(refuse, RemovableHandle.next_id)))
        yield


Refuse = Callable[[str], None]


def _refusing(refuse: Refuse, reason: str) -> Callable[..., None]:
    return lambda *args, **kwargs: refuse(reason)


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
        if not str(_caller().f_globals.get("__name__")).startswith("torch."):
            refuse(
                "reads the gradient of a tensor (Tensor.grad), which would be that of the time of capture: read it "
                "after backward, outside of the forward"
            )
        gradient: Tensor | None = _GRADIENT.__get__(tensor)
        return gradient

    return property(read, _GRADIENT.__set__)


class _Node:
    """Stands for a node of the graph of gradients, for code of the model: hooks on it are refused."""

    def __init__(self, node: Any, refuse: Refuse) -> None:
        self._node, self._refuse = node, refuse

    def __getattr__(self, name: str) -> Any:
        if name in ("register_hook", "register_prehook"):
            self._refuse(_NODES)
        return getattr(self._node, name)


def _gradient_node(refuse: Refuse) -> property:
    def read(tensor: Tensor) -> Any:
        node = _GRADIENT_NODE.__get__(tensor)
        is_torch = str(_caller().f_globals.get("__name__")).startswith("torch.")
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


def _caller() -> FrameType:
    """The frame of the code that called the function in which this is called."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None and frame.f_back.f_back is not None  # noqa: PT018
    return frame.f_back.f_back


def _place(model: nn.Module, paths: dict[int, str]) -> str:
    """The module and the line of the model's code that is running."""
    frame: FrameType | None = _caller()
    line = module = None
    while frame is not None and module is None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if line is None and package not in ("torch", "tlfx"):
            name, number = frame.f_code.co_filename, frame.f_lineno
            line = f"{name}:{number} in {frame.f_code.co_name}: {linecache.getline(name, number).strip()}"
        owner = frame.f_locals.get("self")
        module = owner if isinstance(owner, nn.Module) and id(owner) in paths else None
        frame = frame.f_back
    module = module or model
    path = paths.get(id(module), "") or "the model itself"
    return f"  module: {path} ({class_name(module)})\n  source: {line or 'unknown'}"
