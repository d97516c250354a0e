"""Triton kernels of label arithmetic: where they are, and what they take."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

__all__ = ["MOST_CHANNELS", "TYPES", "kernel", "strides"]

TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Types of weights, queries and keys."""
MOST_CHANNELS = 16
"""Most label channels: each takes another pass over the weights of a block."""


@functools.cache
def kernel(module: str, name: str) -> Callable[..., Tensor] | None:
    """An operator of a module of this package, which is imported when it is needed first; None without Triton."""
    try:
        return cast(Callable[..., Tensor], getattr(importlib.import_module(f"tlfx.runtime.{module}"), name))
    except ImportError:
        return None


def strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    """The strides of an operand; zeros for one that a kernel does not read."""
    return (0,) * rank if tensor is None else tensor.stride()
