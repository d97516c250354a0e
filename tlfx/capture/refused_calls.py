"""Calls that a captured graph cannot repeat: they are refused where the forward makes them."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import random
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import attention
from torch.utils.hooks import RemovableHandle

from tlfx._torch import ATTENTION_SETTERS, is_fake
from tlfx.capture import autograd_functions
from tlfx.capture.model_class import class_name
from tlfx.capture.state.reach import OTHERS
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
_SAVED = (
    "changes tensors that autograd saves (saved_tensors_hooks), which a captured graph does not repeat: do it "
    "around the call of the model"
)
_RANDOM = (
    "reads or sets the random state of torch ({}), which a captured graph does not repeat: do it outside of the "
    "forward, in a torch.autograd.Function, or draw from a torch.Generator of the model"
)
_RANDOM_CALLS = ("manual_seed", "seed", "get_rng_state", "set_rng_state", "fork_rng")
_PACKED = (
    "packs sequences ({}), whose tokens have no fixed positions, so that labels cannot follow: pad them, and mask "
    "what is padding"
)
_KERNELS = (
    "chooses kernels of attention for all code after it ({}), which a captured graph does not repeat: use "
    "torch.nn.attention.sdpa_kernel in the forward, or choose them before the call of the model"
)
_FORWARD_MODE = (
    "computes derivatives by forward-mode differentiation ({}), which a captured graph cannot follow: align the part "
    "of the model before it, or compute them in a torch.autograd.Function"
)
_UNSEEDED = (
    "makes a random generator without a seed ({}), which draws other numbers at each call, where a captured graph "
    "repeats those of the capture: draw with torch's functions"
)
_ENTROPY: tuple[tuple[Any, str, str], ...] = (
    (np.random.bit_generator, "randbits", "numpy.random"),
    (random, "_urandom", "random.SystemRandom"),
    (os, "urandom", "os.urandom"),
)
"""Where generators without a seed, secrets and uuid get their entropy: owners, names, and what messages say."""
_DATA = "assigns Tensor.data, which a captured graph cannot repeat: use copy_ under torch.no_grad()"


@contextlib.contextmanager
def refused_calls(model: nn.Module, note_gradients: Callable[[], None]) -> Iterator[None]:
    """Raise CaptureError where a forward computes or reads gradients, removes hooks that it has not registered, changes
    what autograd saves, sets random states, assigns Tensor.data, or converts tensors to NumPy.

    ``note_gradients`` is called where it reads Tensor.grad_fn."""
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
        stack.enter_context(replaced(Tensor, "grad_fn", _gradient_node(refuse, note_gradients)))
        stack.enter_context(replaced(torch.autograd.graph, "register_multi_grad_hook", _refusing(refuse, _NODES)))
        hooks = torch.autograd.graph.saved_tensors_hooks
        stack.enter_context(replaced(hooks, "__enter__", _saved(refuse, hooks.__enter__)))
        for owner, name in ((o, n) for o in (torch, torch.random) for n in _RANDOM_CALLS if hasattr(o, n)):
            refused = _unless_in_torch(refuse, getattr(owner, name), _RANDOM.format(f"torch.{name}"))
            stack.enter_context(replaced(owner, name, refused))
        rnn = torch.nn.utils.rnn
        refusals: tuple[tuple[Any, str, str, str], ...] = (
            (rnn.PackedSequence, "__new__", "pack_padded_sequence", _PACKED),
            *(
                (torch.autograd.forward_ad, n, "torch.func.jvp", _FORWARD_MODE)
                for n in ("enter_dual_level", "make_dual")
            ),
        )
        for place, name, shown, reason in refusals:
            stack.enter_context(replaced(place, name, _refusing(refuse, reason.format(shown))))
        for owner, name in ATTENTION_SETTERS:
            stack.enter_context(replaced(owner, name, _choosing(refuse, getattr(owner, name))))
        for source, name, shown in _ENTROPY:
            drawing = _drawing(refuse, getattr(source, name), _UNSEEDED.format(shown))
            stack.enter_context(replaced(source, name, drawing))
        stack.enter_context(replaced(random.Random, "seed", _seeding(refuse)))
        stack.enter_context(replaced(Tensor, "data", _data(refuse)))
        stack.enter_context(replaced(RemovableHandle, "remove", _removing(refuse, RemovableHandle.next_id)))
        yield


Refuse = Callable[[str], None]


def _refusing(refuse: Refuse, reason: str) -> Callable[..., None]:
    return lambda *args, **kwargs: refuse(reason)


def _unless_in_torch(refuse: Refuse, original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """A function that only torch may call, or an autograd function, which an aligned call runs as it is."""

    def call(*args: Any, **kwargs: Any) -> Any:
        frame: FrameType | None = _caller()
        while frame is not None and frame.f_globals is globals():
            frame = frame.f_back
        is_torch = str(frame and frame.f_globals.get("__name__")).partition(".")[0] == "torch"
        while frame is not None and not is_torch and frame.f_globals.get("__name__") != autograd_functions.__name__:
            frame = frame.f_back
        if frame is None:
            refuse(reason)
        return original(*args, **kwargs)

    return call


def _saved(refuse: Refuse, original: Callable[..., Any]) -> Callable[..., Any]:
    others = _unless_in_torch(refuse, original, _SAVED)

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


def _choosing(refuse: Refuse, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that chooses kernels of attention, which only sdpa_kernel may call: it restores those before."""

    def choose(*args: Any) -> Any:
        if _caller().f_globals.get("__name__") != attention.__name__:
            refuse(_KERNELS.format("torch.backends.cuda"))
        return original(*args)

    return choose


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


def _drawing(refuse: Refuse, original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        if not _is_for_torch(_caller()):
            refuse(reason)
        return original(*args, **kwargs)

    return draw


def _seeding(refuse: Refuse) -> Callable[..., None]:
    original = random.Random.seed

    def seed(generator: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
        if a is None and not _is_for_torch(_caller()):
            refuse(_UNSEEDED.format("random.Random"))
        original(generator, a, *args, **kwargs)

    return seed


def _is_for_torch(frame: FrameType | None) -> bool:
    """Whether torch called the function of the standard library or of NumPy whose frame is given."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in OTHERS or package == "torch":
            return package == "torch"
        frame = frame.f_back
    return True


class _Node:
    """Stands for a node of the graph of gradients, for code of the model: hooks on it are refused."""

    def __init__(self, node: Any, refuse: Refuse) -> None:
        self._node, self._refuse = node, refuse

    def __getattr__(self, name: str) -> Any:
        if name in ("register_hook", "register_prehook"):
            self._refuse(_NODES)
        return getattr(self._node, name)


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


def _caller() -> FrameType:
    """The frame of the code that called the function in which this is called."""
    frame: Any = inspect.currentframe()
    try:
        caller: FrameType = frame.f_back.f_back
        return caller
    finally:
        del frame  # it would refer to itself


def _place(model: nn.Module, paths: dict[int, str]) -> str:
    """The module and the line of the model's code that is running."""
    frame: FrameType | None = _caller()
    line = module = None
    while frame is not None and module is None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if line is None and package not in OTHERS:
            name, number = frame.f_code.co_filename, frame.f_lineno
            line = f"{name}:{number} in {frame.f_code.co_name}: {linecache.getline(name, number).strip()}"
        owner = frame.f_locals.get("self")
        module = owner if isinstance(owner, nn.Module) and id(owner) in paths else None
        frame = frame.f_back
    module = module or model
    path = paths.get(id(module), "") or "the model itself"
    return f"  module: {path} ({class_name(module)})\n  source: {line or 'unknown'}"
