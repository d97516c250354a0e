"""Capture: a model's forward as a torch.fx graph of ATen operators, bound live to the model's own parameters."""

from __future__ import annotations

import dataclasses
import inspect
import linecache
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from tlfx.errors import CaptureError
from tlfx.inline import inline_subgraphs

__all__ = ["MODEL", "Captured", "capture"]

MODEL = "_m"
"""Name under which a captured graph holds its model: the graph reads ``_m.<path>`` at every call."""


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A graph with flat tensors in and flat values out, and how to go from a call to them and back."""

    graph_module: GraphModule
    images: str
    out_spec: pytree.TreeSpec
    batch: int | None
    """The batch size, where the model could not be captured for any other."""


class _Seen:
    """What a captured forward was seen to do: an object that export passes by, as it would not a tensor or a list."""

    out_spec: pytree.TreeSpec
    assigned: list[str]


class _Entry(nn.Module):
    """The model's forward as a function of flat tensors; everything else in the call is fixed."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any], leaves: Sequence[Any], spec: Any) -> None:
        super().__init__()
        setattr(self, MODEL, model)
        self.call = (forward, leaves, spec)
        self.seen = _Seen()

    def forward(self, *tensors: Tensor) -> Any:
        forward, leaves, spec = self.call
        given = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in leaves], spec)
        model: nn.Module = getattr(self, MODEL)
        before = dict(model.named_buffers())
        outputs, self.seen.out_spec = pytree.tree_flatten(_registered(forward(model, *args, **kwargs)))
        after = {name: buffer for name, buffer in model.named_buffers() if buffer is not before.get(name)}
        self.seen.assigned = list(after)
        return (*outputs, *after.values())


def capture(
    model: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    images: Tensor,
) -> Captured:
    """Capture ``forward(model, *args, **kwargs)`` in the model's present mode, for any batch size if it can be.

    ``images`` is the tensor among the arguments that holds the image content. The model, its buffers and the global
    random state stay as they are. Raises CaptureError with the reason, the source line and the remedy.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    entry = _Entry(model, forward, leaves, spec)
    position = next(i for i, x in enumerate(tensors) if x is images)
    batch = images.shape[0]
    try:
        program, fixed = _export(entry, [_example(x, batch) for x in tensors], batch_of(tensors, batch)), None
    except Exception:
        try:
            program, fixed = _export(entry, tensors, None), batch
        except Exception as error:
            raise _explained(model, error) from error
    names = list(inspect.signature(forward).parameters)[1:]
    return _cleaned(program, entry, model, position, names, fixed)


def batch_of(tensors: Sequence[Tensor], batch: int) -> list[bool]:
    """Which tensors have the batch on their first axis."""
    return [x.dim() > 0 and x.shape[0] == batch for x in tensors]


def _example(x: Tensor, batch: int) -> Tensor:
    """The shape, type and layout of a tensor at batch 2."""
    if x.dim() == 0 or x.shape[0] != batch:
        return x
    example = torch.zeros((2, *x.shape[1:]), dtype=x.dtype, device=x.device)
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return example.contiguous(memory_format=torch.channels_last) if last else example


def _export(entry: nn.Module, tensors: list[Tensor], dynamic: list[bool] | None) -> GraphModule:
    size = Dim("batch", min=1, max=4096)
    shapes = None if dynamic is None else (tuple({0: size} if d else {} for d in dynamic),)
    device = tensors[0].device.type
    with _random_state_kept(), torch.autocast(device, enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(entry, tuple(tensors), dynamic_shapes=shapes, strict=False)
        unchecked = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        return program.module(**unchecked)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the random states of torch, NumPy and Python as they were found."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _cleaned(
    program: GraphModule, entry: _Entry, model: nn.Module, position: int, names: list[str], batch: int | None
) -> Captured:
    """A graph module of our own: flat inputs and outputs, no checks, parameters read from the model itself."""
    graph = Graph()
    outputs = pytree.tree_leaves(graph.graph_copy(program.graph, {}), is_leaf=lambda x: x is None)
    split = len(outputs) - len(entry.seen.assigned)
    graph.output(tuple(outputs[:split]))
    held = {str(n.target): _attribute(program, str(n.target)) for n in graph.nodes if n.op == "get_attr"}
    inline_subgraphs(graph, {k: v for k, v in held.items() if isinstance(v, GraphModule)})
    for node in list(graph.nodes):
        if node.op == "call_function" and not node.users and "_assert_" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in graph.nodes:
        _strip_entry(node)
    _rename(placeholders, names)
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr" and not _is_own(model, str(node.target)):
            path, node.target = str(node.target), str(node.target).replace(".", "_")
            root.register_buffer(node.target, held[path], persistent=False)
    _assign_buffers(graph, dict(zip(entry.seen.assigned, outputs[split:], strict=True)))
    root._modules[MODEL] = model
    graph_module = GraphModule(root, graph, class_name=type(model).__name__)
    graph_module._modules = {MODEL: model}
    return Captured(graph_module, placeholders[position].name, entry.seen.out_spec, batch)


def _attribute(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _assign_buffers(graph: Graph, assigned: dict[str, Node]) -> None:
    """Nodes that give the model the buffers its forward assigns."""
    with graph.inserting_before(graph.output_node()):
        for path, value in assigned.items():
            parent, _, name = f"{MODEL}.{path}".rpartition(".")
            graph.call_function(assign_buffer, (graph.get_attr(parent), name, value))


def assign_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module a buffer, as its forward does."""
    setattr(module, name, value)


torch.fx.node.has_side_effect(assign_buffer)


def _is_own(model: nn.Module, path: str) -> bool:
    """Whether a path of the graph leads to a tensor of the model, not to a constant that capture lifted out of it."""
    root, _, rest = path.partition(".")
    try:
        return root == MODEL and isinstance(_attribute(model, rest), Tensor)
    except AttributeError:
        return False


def _strip_entry(node: Node) -> None:
    """Paths of modules as the model itself has them."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        clean = {k: (p.removeprefix(MODEL).removeprefix("."), t) for k, (p, t) in stack.items()}
        node.meta["nn_module_stack"] = {k: v for k, v in clean.items() if "_Entry" not in str(v[1])}


def _rename(placeholders: list[Node], names: list[str]) -> None:
    """Inputs go by the names of the model's own forward."""
    for node, name in zip(placeholders, names, strict=False):
        node._rename(name)
        node.target = node.name


def _registered(output: Any) -> Any:
    """An output whose dataclasses torch can take apart."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type) and type(output) not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(type(output))
    return output


def _explained(model: nn.Module, error: Exception) -> CaptureError:
    """What export could not do, where, and what to do about it."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    where = "unknown"
    if frames:
        last = frames[-1]
        line = linecache.getline(last.filename, last.lineno or 0).strip()
        where = f"{last.filename}:{last.lineno} in {last.name}: {line}"
    return CaptureError(
        f"{type(model).__name__} cannot be captured as a graph: {type(error).__name__}: {reason}\n"
        f"  source: {where}\n"
        "Control flow that depends on the data (an if, a loop or a size taken from a tensor's values) cannot be "
        "captured: replace it by torch.where or masks, or align the part of the model without it (its backbone, say)."
    )


def _is_library(filename: str) -> bool:
    """Whether a source file belongs to torch or to this module."""
    return filename == __file__ or inspect.getsourcefile(torch).rsplit("/", 1)[0] in filename  # type: ignore[union-attr]
