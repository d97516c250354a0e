"""A call of a model: its arguments, the images among them, and all that a capture of it depends on."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tlfx.errors import InputError

__all__ = ["arguments_of", "images_of", "is_channels_last", "key_of", "tensors_of"]


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call, from the images, a tuple or a dict."""
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors of a call, in the order in which a captured graph takes them."""
    return [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]


def images_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The images among the arguments: the first tensor with a height and a width.

    Raises InputError if there are none, or they are of no floating type.
    """
    tensors = tensors_of(args, kwargs)
    found = next((x for x in tensors if x.dim() in (4, 5)), None)
    if found is None:
        given = ", ".join(str(tuple(x.shape)) for x in tensors) or "no tensor"
        raise InputError(
            f"no images among the arguments: expected a tensor (batch, channels, height, width) or, for video, (batch, "
            f"channels, frames, height, width), got {given}"
        )
    if not found.is_floating_point():
        raise InputError(f"images have dtype {found.dtype}, expected a floating type: use images.float() / 255")
    return found


def key_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], images: Tensor) -> Hashable:
    """What a capture depends on: the arguments but for the batch size, autocast, and the model but for its values."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    call = tuple(_argument_key(x, images.shape[0]) for x in leaves)
    device = images.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    modules = _modules(model)
    return call, str(spec), autocast, tuple(map(_module_key, modules)), _shared(modules)


def _modules(model: nn.Module) -> dict[nn.Module, None]:
    """A module and all inside it, each once: ``model.modules()`` would put together the path of each."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(m for m in module._modules.values() if m is not None)
    return found


def _shared(modules: Iterable[nn.Module]) -> tuple[int, ...]:
    """Which tensors of modules are the same one: for each the number of the first such; nothing if all are apart."""
    first: dict[Tensor, int] = {}
    held = (x for m in modules for x in (*m._parameters.values(), *m._buffers.values()) if x is not None)
    places = tuple([first.setdefault(x, i) for i, x in enumerate(held)])
    return places if len(first) < len(places) else ()


def _module_key(module: nn.Module) -> Hashable:
    """What a module's forward depends on: its class, mode, hooks, numbers, names, flags and parts, and the types of its
    tensors."""
    held = vars(module)
    layout = _layout.__wrapped__ if torch.compiler.is_compiling() else _layout  # dynamo warns of caches
    kinds, settings, tuples = layout(tuple(held), tuple(map(type, held.values())))
    own = (*module._parameters.values(), *module._buffers.values())
    return (
        type(module),
        kinds,
        settings(held),
        tuple((name, held[name]) for name in tuples if _SETTING.issuperset(map(type, held[name]))),
        tuple(module._modules),
        tuple(tuple(held[hooks]) for hooks in _HOOKS),
        tuple(x if x is None else (x.shape, x.dtype, x.device) for x in own),
    )


_COMPILED = "_is_torch_compile"
"""What torch.compile leaves on a module."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_SETTING = frozenset((bool, int, float, str, type(None)))


@functools.lru_cache(4096)
def _layout(names: tuple[str, ...], types: tuple[type, ...]) -> tuple[Hashable, Callable[[Any], Any], list[str]]:
    """Of attributes: plain settings and their types, what reads those, and the names of tuples, which may be more."""
    kinds = {n: kind for n, kind in zip(names, types, strict=True) if kind in _SETTING and n != _COMPILED}
    tuples = [n for n, kind in zip(names, types, strict=True) if kind is tuple]
    return tuple(kinds.items()), operator.itemgetter(*kinds) if kinds else lambda held: (), tuples


def _argument_key(x: Any, batch: int) -> Hashable:
    if not isinstance(x, Tensor):
        return type(x), x if isinstance(x, Hashable) else repr(x)
    batched = x.dim() > 0 and x.shape[0] == batch
    return batched, tuple(x.shape[1:] if batched else x.shape), x.dtype, x.device, is_channels_last(x)


def is_channels_last(x: Tensor) -> bool:
    """Whether a tensor (batch, channels, height, width) lies in memory with its channels last."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
