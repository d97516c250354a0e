"""Parameters as torch.export needs them: unsharded under fully_shard, and nn.Parameter under functional_call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import fsdp_policy, is_fully_sharded, tree_map
from tlfx.errors import CaptureError
from tlfx.graph.constants import is_sharded

__all__ = ["casts_arguments", "casts_of", "whole_parameters"]


@contextlib.contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Replace parameters in the context: a sharded parameter by one of its full shape and compute type, without memory
    (for capture, not for computation); a tensor that torch.func.functional_call has put in its place by a parameter,
    which torch.export requires.

    Raises CaptureError for parameters that are sharded by anything but fully_shard.
    """
    kept: list[tuple[nn.Module, dict[str, Any]]] = []
    whole: dict[Tensor, nn.Parameter] = {}
    try:
        for path, module in model.named_modules():
            replaced = {k: p for k, p in module._parameters.items() if p is not None and _is_to_be_replaced(p)}
            if replaced:
                kept.append((module, dict(module._parameters)))
            for name, parameter in replaced.items():
                if parameter not in whole:
                    owner = _owner(model, path, name) if is_sharded(parameter) else None
                    whole[parameter] = _like(parameter) if owner is None else _whole(parameter, owner)
                module._parameters[name] = whole[parameter]
        yield
    finally:
        for module, parameters in kept:
            module._parameters.update(parameters)


def _is_to_be_replaced(parameter: Tensor) -> bool:
    return is_sharded(parameter) or not isinstance(parameter, nn.Parameter)


def _like(tensor: Tensor) -> nn.Parameter:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return nn.Parameter(made, requires_grad=tensor.requires_grad)


def _whole(parameter: Tensor, owner: nn.Module) -> nn.Parameter:
    dtype = fsdp_policy(owner).param_dtype if parameter.is_floating_point() else None
    # the device it is gathered on; shards may be offloaded
    kind = parameter.device_mesh.device_type  # type: ignore[attr-defined]
    device = parameter.device if parameter.device.type == kind else kind
    made = torch.empty_strided(parameter.shape, parameter.stride(), dtype=dtype or parameter.dtype, device=device)
    # no memory: the parameters of the whole model may not fit one device
    made.untyped_storage().resize_(0)
    return nn.Parameter(made, requires_grad=parameter.requires_grad)


def _owner(model: nn.Module, path: str, name: str) -> nn.Module:
    """The nearest module under fully_shard, which gathers the parameter."""
    parts = path.split(".") if path else []
    for end in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if is_fully_sharded(module):
            return module
    raise CaptureError(
        f"the parameter {'.'.join((*parts, name))} is a DTensor that torch.distributed.fsdp.fully_shard does not "
        "gather (tensor parallelism, or distributed by hand), so what reads it cannot be followed: align the "
        "model with whole parameters, or shard it by fully_shard"
    )


def casts_arguments(module: nn.Module) -> bool:
    """Whether fully_shard casts the floating-point tensors among the arguments of a module, also inside
    dictionaries."""
    return is_fully_sharded(module) and bool(
        fsdp_policy(module).cast_forward_inputs and fsdp_policy(module).param_dtype
    )


def casts_of(module: nn.Module) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How fully_shard casts the arguments and the output of a module."""
    made = fsdp_policy(module).output_dtype if is_fully_sharded(module) else None
    return _cast_to(fsdp_policy(module).param_dtype if casts_arguments(module) else None), _cast_to(made)


def _cast_to(dtype: torch.dtype | None) -> Callable[[Any], Any]:
    def cast(x: Any) -> Any:
        return x.to(dtype) if dtype is not None and isinstance(x, Tensor) and x.is_floating_point() else x

    return lambda values: tree_map(cast, values)
