"""Models that cannot be aligned: they are refused with the order of calls that works."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from tlfx._torch import is_compiled
from tlfx.errors import InputError, a_type

__all__ = ["check_alignable"]

_ORDER = {
    ("torch.nn.parallel", "DistributedDataParallel"): "DistributedDataParallel(tlfx.align(model))",
    ("torch.nn.parallel", "DataParallel"): (
        "torch.nn.parallel.DistributedDataParallel(tlfx.align(model)), one process for each device"
    ),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"): (
        "tlfx.align(model), then torch.distributed.fsdp.fully_shard(model), which replaces it"
    ),
}
"""What to write, by module and name of classes around a model; of those not imported there is no instance."""


def _order_of(model: nn.Module) -> str | None:
    """What to write for a wrapper that must be applied after alignment; None for another module."""
    if is_compiled(model):
        return "torch.compile(tlfx.align(model))"
    wrappers = (order for (module, name), order in _ORDER.items() if isinstance(model, _loaded(module, name)))
    return next(wrappers, None)


def _loaded(module: str, name: str) -> Any:
    # nothing is an instance of ()
    return getattr(sys.modules.get(module), name, ())


def check_alignable(model: Any) -> None:
    """Raise InputError for an object other than a module, and for a wrapper that must be applied after alignment."""
    if not isinstance(model, nn.Module):
        raise InputError(f"align takes a torch.nn.Module, got {type(model).__name__}")
    order = _order_of(model)
    if order is not None:
        raise InputError(
            f"{type(model).__name__} runs the model that it wraps and cannot be aligned itself: use {order}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"{type(model).__name__} is scripted, and its forward is fixed: align the model before that")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{path} is {a_type(module)}, whose code is fixed and cannot be captured: give the model the "
                "module that it was made from"
            )
    if isinstance(model, GraphModule):
        raise InputError(
            f"{type(model).__name__} is a torch.fx.GraphModule, whose class is rewritten whenever its graph is: align "
            "the model it was traced from, or a module that holds it, such as torch.nn.Sequential(model)"
        )
