"""Gradient and autocast modes inside a forward: pairs of nodes enter and leave them as the forward does.

torch.export makes sub-graphs of the code under a mode, and loses modes that are nested in one another. Its passes are
left out: autocast enters and leaves by nodes of torch's own, and gradient modes are recorded here, since leaving one
restores the mode of the caller, which is not known before a call. Inference mode is captured as no_grad: it changes
neither values nor gradients of code that runs under both."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from tlfx._torch import (
    attention_state,
    enter_autocast,
    exit_autocast,
    mode_passes,
    set_attention_state,
    set_grad_mode,
    tracing_questions,
)
from tlfx.capture.marks import mark, marks_of
from tlfx.capture.surroundings import package_of_caller, replaced

__all__ = [
    "ModeRecorder",
    "autocast_depth",
    "gradients_of",
    "pair_modes",
    "restored_after_error",
    "without_mode_passes",
]

_is_grad_enabled, _is_cache_enabled = torch.is_grad_enabled, torch.is_autocast_cache_enabled
_is_inference_mode_enabled = torch.is_inference_mode_enabled


_GRADIENTS = "gradient mode"
"""The kind of marks where a forward enters or leaves a gradient mode: which mode is next, and whether it enters."""


class ModeRecorder:
    """Records the gradient modes that a forward enters and leaves, and whether it reads them."""

    def __init__(self, caches: bool = True, inference: bool = False, traced: bool = False) -> None:
        """``caches``: whether autocast caches the casts of weights where the forward is called; ``inference``: whether
        that is in inference mode; ``traced``: whether a forward that asks if it is traced is told so."""
        self.is_read = False
        """Whether the forward asks for the gradient mode, or whether tensors require gradients."""
        self.asks_whether_traced = False
        """Whether the forward asks if it is traced, as by torch.compiler.is_compiling()."""
        self._caches, self._inference, self._traced = caches, inference, traced
        self._numbers = itertools.count()
        self._entered: dict[int, list[tuple[int, bool, bool]]] = {}
        """What each manager has entered and not left: the number of its mark, and the modes before."""

    def enter(self, manager: Any, enabled: bool) -> None:
        """Set the mode, and mark it."""
        number = next(self._numbers)
        self._entered.setdefault(id(manager), []).append((number, _is_grad_enabled(), self._inference))
        mark(_GRADIENTS, number, (), enabled, True)
        set_grad_mode(enabled)

    def leave(self, manager: Any) -> None:
        """Restore the mode before the manager's last entry, and mark it."""
        number, before, self._inference = self._entered[id(manager)].pop()
        mark(_GRADIENTS, number, (), before, False)
        set_grad_mode(before)

    def enter_inference(self, manager: torch.inference_mode) -> None:
        """Set the gradient mode as inference mode does, and mark it."""
        self.enter(manager, not manager.mode)
        self._inference = bool(manager.mode)

    def note_read(self) -> None:
        """Note that the forward depends on what requires gradients."""
        self.is_read = True

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record modes in the context."""
        with contextlib.ExitStack() as stack:
            for kind, name, method in self._methods():
                stack.enter_context(replaced(kind, name, method))
            stack.enter_context(replaced(torch, "is_grad_enabled", self._read))
            stack.enter_context(replaced(torch, "is_inference_mode_enabled", self._read_inference))
            for owner, name in tracing_questions():
                stack.enter_context(replaced(owner, name, self._told(getattr(owner, name))))
            for name in ("requires_grad", "is_leaf"):
                stack.enter_context(replaced(Tensor, name, self._reading(getattr(Tensor, name))))
            stack.enter_context(replaced(torch, "is_autocast_cache_enabled", self._caches_casts))
            yield

    def _caches_casts(self) -> bool:
        """torch.export turns the cache of casts off; where autocast is made, it is as in the forward's own call."""
        caller = inspect.currentframe()
        caller = caller and caller.f_back
        is_autocast = caller is not None and caller.f_globals.get("__name__") == torch.autocast.__module__
        return self._caches if is_autocast else _is_cache_enabled()

    def _read(self) -> bool:
        self.is_read |= package_of_caller() not in ("torch", "tlfx")
        return _is_grad_enabled()

    def _read_inference(self) -> bool:
        if package_of_caller() in ("torch", "tlfx"):
            return _is_inference_mode_enabled()
        self.is_read = True
        return self._inference

    def _told(self, original: Callable[[], bool]) -> Callable[[], bool]:
        def is_traced() -> bool:
            if package_of_caller() in ("torch", "tlfx"):
                return original()
            self.asks_whether_traced = True
            return self._traced

        return is_traced

    def _reading(self, attribute: Any) -> property:
        """An attribute of tensors that depends on the gradient mode and on what requires gradients."""

        def read(tensor: Tensor) -> Any:
            self.is_read |= package_of_caller() not in ("torch", "tlfx")
            return attribute.__get__(tensor)

        return property(read, getattr(attribute, "__set__", None))

    def _methods(self) -> Iterator[tuple[type, str, Callable[..., Any]]]:
        """Classes, names of their methods that set the gradient mode, and what replaces these."""

        def leave(manager: Any, *error: Any) -> None:
            self.leave(manager)

        def init(manager: Any, mode: bool) -> None:
            manager.mode = mode
            self.enter(manager, mode)  # also without a with statement

        def decorate(manager: Any, function: Any) -> Any:
            self.leave(manager)
            # its __init__ has set the mode: as a decorator, torch too restores it before it wraps the function
            return torch.set_grad_enabled.__mro__[1].__call__(manager, function)

        yield torch.no_grad, "__enter__", lambda manager: self.enter(manager, False)
        yield torch.enable_grad, "__enter__", lambda manager: self.enter(manager, True)
        yield torch.inference_mode, "__enter__", lambda manager: self.enter_inference(manager)
        yield torch.set_grad_enabled, "__init__", init
        # its __init__ has entered and marked the mode
        yield torch.set_grad_enabled, "__enter__", lambda manager: set_grad_mode(manager.mode)
        yield torch.set_grad_enabled, "__call__", decorate
        for kind in (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.set_grad_enabled):
            yield kind, "__exit__", leave


@contextlib.contextmanager
def without_mode_passes() -> Iterator[None]:
    """Leave out the passes of torch.export that make sub-graphs of modes."""
    with contextlib.ExitStack() as stack:
        for module, name in mode_passes():
            stack.enter_context(replaced(module, name, lambda graph_module, signature: (graph_module, signature)))
        yield


def pair_modes(graph: Graph) -> None:
    """Replace marks by nodes that set a gradient mode, and nodes that restore the one before."""
    entered: dict[int, Node] = {}
    for node, (_, _, _, number, (enabled, enters)) in marks_of(graph, _GRADIENTS).items():
        with graph.inserting_before(node):
            if enters:
                entered[number] = graph.call_function(set_gradients, (bool(enabled),))
            else:
                graph.call_function(reset_gradients, (entered.pop(number),))
        if node.next.target is set_grad_mode:  # what capture itself called; traced outside of autograd functions only
            graph.erase_node(node.next)
        graph.erase_node(node)


def gradients_of(model: nn.Module, tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    """The gradient and inference modes, and which of the tensors of a call and of the parameters of a model require
    gradients."""
    parameters = [x.requires_grad for x in model.parameters()]
    return (
        torch.is_grad_enabled(),
        not torch.compiler.is_compiling() and torch.is_inference_mode_enabled(),  # dynamo cannot trace the question
        *[x.requires_grad for x in tensors],
        *parameters,
    )


@contextlib.contextmanager
def restored_after_error(device: str) -> Iterator[None]:
    """Restore gradient mode, autocast of a type of devices and of the CPU, and kernels of attention if an error occurs.

    A graph enters and leaves modes by nodes, so that an error between them (also the one by which a checkpoint ends its
    recomputation) would leave them as they are; autocast that stays open keeps its casts of weights for ever.
    """
    devices = {"cpu", device} - {"meta"}
    gradients, caches, depth = torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), autocast_depth()
    autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    kernels = attention_state()
    try:
        yield
    except BaseException:
        torch.set_grad_enabled(gradients)
        torch.set_autocast_cache_enabled(caches)
        set_attention_state(kernels)
        for kind, enabled, dtype in autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        while autocast_depth() > depth:
            torch.autocast_decrement_nesting()
        if depth == 0:
            torch.clear_autocast_cache()
        raise


def autocast_depth() -> int:
    """How many autocast contexts are open: the last to close clears the cache of casts."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def set_gradients(enabled: bool) -> bool:
    """Set the gradient mode and return the one before."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(enabled)
    return before


def reset_gradients(before: bool) -> None:
    """Set the gradient mode back."""
    torch.set_grad_enabled(before)


# otherwise eliminate_dead_code would erase those without users
for _function in (set_gradients, reset_gradients, set_grad_mode, enter_autocast, exit_autocast):
    torch.fx.node.has_side_effect(_function)
