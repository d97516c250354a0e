"""Settings of torch for all code, which a captured graph does not change again: they are refused in a forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import attention

from tlfx._torch import ATTENTION_SETTERS
from tlfx.capture.callers import Refuse, caller, refusing, unless_in_torch
from tlfx.capture.surroundings import replaced

__all__ = ["refused_settings"]

_KERNELS = (
    "chooses kernels of attention for all code after it (torch.backends.cuda), which a captured graph does not repeat: "
    "use torch.nn.attention.sdpa_kernel in the forward, or choose them before the call of the model"
)
_SETTING = (
    "changes a setting of torch for all code ({}), which a captured graph does not repeat: change it around the call "
    "of the model"
)
_SETTERS = (
    *("set_default_dtype", "set_default_device", "set_default_tensor_type", "use_deterministic_algorithms"),
    *("set_deterministic_debug_mode", "set_float32_matmul_precision", "set_flush_denormal", "set_num_threads"),
    *(name for name in dir(torch) if name.startswith("set_autocast_")),
)
_BACKENDS = ("cudnn", "mkldnn", "nnpack", "miopen", "cuda.matmul")


@contextlib.contextmanager
def refused_settings(refuse: Refuse) -> Iterator[None]:
    """Refuse functions and attributes of torch that change settings, unless torch itself calls them."""
    with contextlib.ExitStack() as stack:
        for owner, name in ATTENTION_SETTERS:
            stack.enter_context(replaced(owner, name, _choosing(refuse, getattr(owner, name))))
        for name in _SETTERS:
            stack.enter_context(_refused(torch, name, f"torch.{name}", refuse))
        for path in _BACKENDS:
            backend: Any = torch.backends
            for part in path.split("."):
                backend = getattr(backend, part, None)
            for name in ("flags", "set_flags"):
                if hasattr(backend, name):
                    stack.enter_context(_refused(backend, name, f"torch.backends.{path}.{name}", refuse))
        assigned = refusing(refuse, _SETTING.format("an attribute of torch.backends"))
        stack.enter_context(replaced(torch.backends.ContextProp, "__set__", assigned))
        stack.enter_context(replaced(torch.backends.cuda.cuBLASModule, "__setattr__", assigned))
        yield


def _refused(owner: Any, name: str, shown: str, refuse: Refuse) -> contextlib.AbstractContextManager[None]:
    return replaced(owner, name, unless_in_torch(refuse, getattr(owner, name), _SETTING.format(shown)))


def _choosing(refuse: Refuse, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that chooses kernels of attention, which only sdpa_kernel may call: it restores those before."""

    def choose(*args: Any) -> Any:
        if caller().f_globals.get("__name__") != attention.__name__:
            refuse(_KERNELS)
        return original(*args)

    return choose
