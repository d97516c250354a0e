"""Capture: a model's forward as a torch.fx graph of ATen operators, bound live to the model's own parameters."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Node

from tlfx._torch import TreeSpec, rename, tree_flatten, tree_leaves, tree_unflatten
from tlfx.capture.arguments import Call, is_channels_last
from tlfx.capture.capture_errors import check_sizes, check_vmap, explain
from tlfx.capture.model_class import class_name, own_forward, own_parameters
from tlfx.capture.modes import inline_subgraphs
from tlfx.capture.recording import Recording, build_tree, recorded_regions
from tlfx.capture.regions import RegionTree
from tlfx.capture.sharding import whole_parameters
from tlfx.capture.surroundings import capture_mode, quiet, state_kept
from tlfx.errors import TlfxError
from tlfx.graph.shells import graph_module_of
from tlfx.rules.registry import REGISTRY

__all__ = ["MODEL", "Captured", "capture"]

MODEL = "_m"
"""Name under which a captured graph holds its model: the graph reads ``_m.<path>`` at every call."""


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A graph with flat tensors in and flat values out, and how to go from a call to them and back."""

    graph_module: GraphModule
    images: str
    out_spec: TreeSpec
    batch: int | None
    """The batch size, where the model could not be captured for any other."""
    regions: RegionTree
    """The parts of the graph that stand for one call."""


class _ForwardRecord:
    """What the captured forward does; torch.export ignores an object of a plain class."""

    out_spec: TreeSpec
    assigned: list[str]


class _Entry(nn.Module):
    """The model's forward as a function of flat tensors; all other arguments are fixed."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        setattr(self, MODEL, model)
        self.call = call
        self.record = _ForwardRecord()

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, Tensor) else x for x in self.call.leaves]
        args, kwargs = tree_unflatten(leaves, self.call.spec)
        model: nn.Module = getattr(self, MODEL)
        before = dict(model.named_buffers())
        outputs, self.record.out_spec = _flatten(own_forward(model)(model, *args, **kwargs))
        after = {name: buffer for name, buffer in model.named_buffers() if buffer is not before.get(name)}
        self.record.assigned = list(after)
        return (*outputs, *after.values())


def capture(model: nn.Module, call: Call, any_batch: bool = True) -> Captured:
    """Capture the model's own forward for a call, in the model's present mode, for any batch size if it can be.

    Without ``any_batch`` it is captured for the batch size of the call only, which takes half the time.

    The model, its buffers and the global random state are unchanged. Raises CaptureError with the reason, the source
    line and the remedy.
    """
    REGISTRY.load()  # an error in a rule must not look like a failure of the model
    entry, recording = _Entry(model, call), Recording()
    batched = [x.dim() > 0 and x.shape[0] == call.batch for x in call.tensors]
    try:
        program = _export(entry, call.tensors, batched if any_batch else None, recording)
        fixed = None if any_batch else call.batch
    except TlfxError:
        raise
    except Exception:
        recording = Recording()
        try:
            program = _export(entry, call.tensors, None, recording)
            fixed = call.batch
        except Exception as error:
            function = recording.function_that_raised(error)
            raise explain(class_name(model), error, lambda: _run(model, call), call.tensors, function) from error
    captured = _cleaned(program, entry, model, call, fixed, recording)
    check_sizes(class_name(model), captured.graph_module.graph)
    check_vmap(class_name(model), captured.graph_module.graph)
    return captured


def _run(model: nn.Module, call: Call) -> None:
    """Run a forward, and restore buffers, attributes and random states."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with state_kept(model), torch.no_grad():
            own_forward(model)(model, *call.args, **call.kwargs)
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _example(x: Tensor, batched: bool) -> Tensor:
    """The shape, type and layout of a tensor, at batch 2 if its batch size is free."""
    shape = (2, *x.shape[1:]) if batched else x.shape
    example = torch.zeros(shape, dtype=x.dtype, device=x.device)
    return example.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else example


def _export(entry: nn.Module, tensors: list[Tensor], dynamic: list[bool] | None, recording: Recording) -> GraphModule:
    """The graph of a forward; its regions go to ``recording``."""
    size = Dim("batch", min=1, max=4096)
    shapes = None if dynamic is None else (tuple({0: size} if d else {} for d in dynamic),)
    model = getattr(entry, MODEL)
    with (
        state_kept(entry) as has_drawn,
        capture_mode(tensors[0].device.type),
        quiet(),
        whole_parameters(model),
        recorded_regions(model, recording),
    ):
        example = tuple(_example(x, bool(dynamic and dynamic[i])) for i, x in enumerate(tensors))
        program = torch.export.export(entry, example, dynamic_shapes=shapes, strict=False)
        if has_drawn():  # the graph would repeat the same numbers at every call
            raise RuntimeError("the forward draws from the random generator of Python or NumPy: use torch's instead")
        unchecked = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        return program.module(**unchecked)


def _cleaned(
    program: GraphModule,
    entry: _Entry,
    model: nn.Module,
    call: Call,
    batch: int | None,
    recording: Recording,
) -> Captured:
    """The captured graph module: flat inputs and outputs, no checks, parameters read from the model itself."""
    graph = Graph()
    outputs = tree_leaves(graph.graph_copy(program.graph, {}), is_leaf=lambda x: x is None)
    split = len(outputs) - len(entry.record.assigned)
    graph.output(tuple(outputs[:split]))
    held = {str(n.target): _attribute(program, str(n.target)) for n in graph.nodes if n.op == "get_attr"}
    inline_subgraphs(graph, {k: v for k, v in held.items() if isinstance(v, GraphModule)})
    _assign_buffers(graph, dict(zip(entry.record.assigned, outputs[split:], strict=True)))
    regions = build_tree(graph, recording)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in graph.nodes:
        _strip_entry(node, class_name(model))
    _rename(placeholders, _names(call, model))
    modules: dict[str, nn.Module] = {}
    buffers: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and not _is_own(model, str(node.target)):
            path, node.target = str(node.target), str(node.target).replace(".", "_")
            # modules among them are functions that an operator takes
            (modules if isinstance(held[path], nn.Module) else buffers)[node.target] = held[path]
    graph_module = graph_module_of(graph, {**modules, MODEL: model}, buffers, class_name(model))
    position = next(i for i, x in enumerate(call.tensors) if x is call.images)
    return Captured(graph_module, placeholders[position].name, entry.record.out_spec, batch, regions)


def _attribute(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _assign_buffers(graph: Graph, assigned: dict[str, Node]) -> None:
    """Nodes that assign buffers to the model, as its forward does."""
    with graph.inserting_before(graph.output_node()):
        for path, value in assigned.items():
            parent, _, name = f"{MODEL}.{path}".rpartition(".")
            graph.call_function(assign_buffer, (graph.get_attr(parent), name, value))


def assign_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Assign a buffer to a module, as its forward does."""
    setattr(module, name, value)


torch.fx.node.has_side_effect(assign_buffer)


def _is_own(model: nn.Module, path: str) -> bool:
    """Whether a path of the graph leads to a part of the model, not to a constant that torch.export lifted."""
    root, _, rest = path.partition(".")
    try:
        return root == MODEL and isinstance(_attribute(model, rest) if rest else model, Tensor | nn.Module)
    except AttributeError:
        return False


def _strip_entry(node: Node, kind: str) -> None:
    """Paths of modules relative to the model; the model itself, of class ``kind``, has the empty path."""
    stack = node.meta.get("nn_module_stack")
    if stack:
        node.meta["nn_module_stack"] = {
            k: (path.removeprefix(MODEL).removeprefix("."), made if path else kind) for k, (path, made) in stack.items()
        }


def _names(call: Call, model: nn.Module) -> list[str]:
    """Names of the tensors of a call in the model's own forward."""
    positional = [parameter.name for parameter in own_parameters(model)]
    given = (*zip(positional, call.args, strict=False), *call.kwargs.items())
    return [name for name, value in given for x in tree_leaves(value) if isinstance(x, Tensor)]


def _rename(placeholders: list[Node], names: list[str]) -> None:
    """Name the inputs as the model's own forward does."""
    for node, name in zip(placeholders, names, strict=False):
        rename(node, name)
        node.target = node.name


def _flatten(output: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves and structure of an output; dataclasses that torch does not know are registered as pytrees."""
    leaves, spec = tree_flatten(output)
    unknown = {type(x) for x in leaves if dataclasses.is_dataclass(x) and not isinstance(x, type)}
    for kind in unknown:
        torch.export.register_dataclass(kind)
    return _flatten(output) if unknown else (leaves, spec)
