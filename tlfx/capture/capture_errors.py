"""Why a model could not be captured: the reason, the source line and the remedy."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.fx import Graph, Node
from torch.nn.parameter import is_lazy

from tlfx._torch import global_hooks, is_vmap
from tlfx.capture.model_class import class_name
from tlfx.errors import CaptureError
from tlfx.graph.nodes import describe, sizes

__all__ = ["check_data", "check_global_hooks", "check_sizes", "check_vmap", "explain", "unknown_size"]

_REMEDY = (
    "Replace it by torch.where or masks of a fixed size, or align the part of the model without it (its backbone, say)."
)


def explain(
    kind: str,
    error: Exception,
    run: Callable[[], Any],
    tensors: Sequence[Tensor],
    function: type[Function] | None = None,
) -> CaptureError:
    """The error that says why export failed for a model of class ``kind``, where, and the remedy.

    ``run`` calls the model itself: where that fails too, export is not the cause. ``function`` is the autograd function
    whose forward raised the error, if any.
    """
    try:
        run()
    except Exception as own:
        given = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in tensors)
        return CaptureError(
            f"{kind} fails by itself, with or without alignment: {_named(own)}\n  source: {_line_of(own)}\n"
            f"It was given {given}: pass valid arguments, or fix the model."
        )
    if function is not None:
        return CaptureError(
            f"the forward of the autograd function {function.__qualname__} cannot be captured as a graph: "
            f"{_named(error)}\n  source: {_line_of(error)}\n"
            "Write it with operators of torch that do not read values of tensors, or make it an operator by "
            "torch.library.custom_op, with register_fake and register_autograd, and register a rule for that."
        )
    return CaptureError(
        f"{kind} cannot be captured as a graph: {_named(error)}\n  source: {_line_of(error)}\n"
        "It runs by itself, but at this line its course depends on the data (an if, a loop or a size taken from a "
        f"tensor's values), or it leaves torch. {_REMEDY}"
    )


def check_global_hooks(kind: str) -> None:
    """Raise CaptureError if hooks for all modules are registered, which an aligned call would not run."""
    for hook in global_hooks():
        if str(getattr(hook, "__module__", "")).partition(".")[0] != "torch":
            raise CaptureError(
                f"{kind} cannot be captured while {getattr(hook, '__qualname__', hook)} is registered as a hook for "
                "all modules: an aligned call would not run it. Register it on the modules that it is for "
                "(module.register_forward_hook), or remove it"
            )


def check_data(model: nn.Module, images: Tensor) -> None:
    """Raise CaptureError for parameters or buffers without sizes (lazy modules), or without data while the images have
    some."""
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        if is_lazy(tensor):
            raise CaptureError(
                f"{class_name(model)} has the uninitialised {kind} {path} of a lazy module, whose size is unknown: "
                "call model(images) once before an optimiser is made and the model is called with a target"
            )
        if tensor.is_meta and not images.is_meta:
            raise CaptureError(
                f"{class_name(model)} has its {kind} {path} on the meta device, without data, and the images are on "
                f"{images.device}: give it memory by model.to_empty(device={str(images.device)!r}) and load its weights"
            )


def check_vmap(kind: str, graph: Graph) -> None:
    """Raise CaptureError if a graph contains a vmap: export drops the calls that begin and end it."""
    for node in graph.nodes:
        if is_vmap(node.target):
            raise CaptureError(
                f"{kind} calls torch.vmap, which a captured graph cannot run\n{describe(node)}\n"
                "Write it with a batch axis. Flex attention without a mask calls it too: give it one, made by "
                "create_block_mask when the model is built."
            )


def check_sizes(kind: str, graph: Graph) -> None:
    """Raise CaptureError if the size of any tensor of a graph depends on the data."""
    node = unknown_size(graph)
    if node is not None:
        repeats = getattr(node.target, "overloadpacket", None) is torch.ops.aten.repeat_interleave
        remedy = f"{_REMEDY} A mask that never changes can be a buffer that the forward uses as it is."
        raise CaptureError(
            f"{kind} has a tensor whose size depends on the data, so that labels have no fixed rows\n{describe(node)}\n"
            + ("Pass output_size=, the sum of the repeats, or keep them in a buffer." if repeats else remedy)
        )


def unknown_size(graph: Graph) -> Node | None:
    """The first node that computes a tensor of unknown size."""
    return next((node for node in graph.nodes if any(None in size for size in sizes(node))), None)


def _named(error: Exception) -> str:
    """Class and first line of an error."""
    reason = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {reason}"


def _line_of(error: Exception) -> str:
    """The innermost line of the model's own code, or of a forward of torch."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent != Path(__file__).parent]
    frames = [f for f in frames if not _is_library(f.filename)] or [f for f in frames if f.name == "forward"]
    if not frames:
        return "unknown"
    last = frames[-1]
    return f"{last.filename}:{last.lineno} in {last.name}: {linecache.getline(last.filename, last.lineno or 0).strip()}"


def _is_library(filename: str) -> bool:
    """Whether a source file belongs to torch, is generated, or belongs to contextlib."""
    torch_folder = str(inspect.getsourcefile(torch)).rsplit("/", 1)[0]
    return filename.startswith((torch_folder, "<")) or filename == contextlib.__file__
