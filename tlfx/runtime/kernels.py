"""Triton kernels of label arithmetic: where they are, and what they take."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from tlfx._torch import is_fake, runs_directly

__all__ = [
    "MOST_CHANNELS",
    "TYPES",
    "device_of",
    "is_interpreted",
    "kernel",
    "launched",
    "load_kernels",
    "operator",
    "strides",
]

TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of weights, queries and keys."""
MOST_CHANNELS = 16
"""Most label channels: each takes another pass over the weights of a block."""


_MODULES = {
    "attention_labels": "attention_kernel",
    "convolve_labels": "convolution_kernel",
    "mix_labels": "mixing_kernel",
}
_LOADED: dict[str, Callable[..., Tensor] | None] = {}


def load_kernels() -> None:
    """Import the operators, which takes Triton; a graph that calls them is compiled without a break only afterwards."""
    for name, module in _MODULES.items():
        try:
            _LOADED[name] = getattr(importlib.import_module(f"tlfx.runtime.{module}"), name)
        except ImportError:
            _LOADED[name] = None


def kernel(name: str) -> Callable[..., Tensor] | None:
    """An operator of this package by its name, imported when it is needed first; None without Triton."""
    if name not in _LOADED:
        load_kernels()
    return _LOADED[name]


def operator(schema: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Make a function that launches a kernel an operator ``tlfx::name``, which export, torch.compile and fake tensors
    know. A call that just runs is one of the function itself: the operator takes 20 µs of the host."""

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        traced = triton_op(f"tlfx::{function.__name__}", function, mutates_args=(), schema=schema)

        @functools.wraps(function)
        def call(*args: Any) -> Tensor:
            out: Tensor = function(*args) if runs_directly(args) else traced(*args)
            return out

        return call

    return decorate


def launched(triton_kernel: Any) -> Any:
    """A Triton kernel as it is launched, which torch.compile can trace. Wrapped for each launch, since
    torch.compiler.reset() forgets kernels that were wrapped before; those of the interpreter cannot be wrapped."""
    return triton_kernel if is_interpreted(triton_kernel) else wrap_triton(triton_kernel)


def is_interpreted(triton_kernel: Any) -> bool:
    """Whether Triton runs a kernel by its interpreter (TRITON_INTERPRET=1)."""
    from triton import JITFunction  # where a kernel is launched, there is Triton

    return not isinstance(triton_kernel, JITFunction)


def device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which kernels are launched on the device of a tensor: Triton launches them on the current one."""
    if not tensor.is_cuda or is_fake(tensor) or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    """The strides of an operand; zeros for one that a kernel does not read."""
    return (0,) * rank if tensor is None else tensor.stride()
