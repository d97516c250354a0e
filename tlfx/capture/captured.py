"""A captured graph: flat tensors in and flat values out, without what torch.export adds, bound to the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from tlfx._torch import TreeSpec, generator_key, rename, storage_key, tree_leaves
from tlfx.capture.arguments import Call
from tlfx.capture.entry import ForwardRecord
from tlfx.capture.images import names_of
from tlfx.capture.kernels import place_kernels
from tlfx.capture.model_class import class_name
from tlfx.capture.modes import pair_modes
from tlfx.capture.recording import Recording, build_tree
from tlfx.capture.regions import FORWARD_HOOKS, HookedCall, RegionTree
from tlfx.capture.state.ignoring import is_ignored_state
from tlfx.capture.state.reach import Reach
from tlfx.capture.state.readings import Readings
from tlfx.capture.state.stored import Stored, Watched, put_state
from tlfx.capture.tensor_calls import TensorCalls, place_tensor_calls
from tlfx.capture.value_reads import ValueRecorder
from tlfx.errors import CaptureError
from tlfx.graph.aliasing import storage_of, written_storages
from tlfx.graph.nodes import describe
from tlfx.graph.shells import MODEL, graph_module_of

__all__ = ["Captured", "cleaned"]

_STATE = "_state"
"""Name under which a captured graph holds the places that it writes to."""
_CALLS = "_calls"
"""Name under which a captured graph holds the calls that it makes on tensors."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph with flat tensors in and flat values out, and how to go from a call to them and back."""

    graph_module: GraphModule
    images: tuple[str, ...]
    """The names of the inputs that are images, mixed by one mask."""
    frames_first: bool
    """Whether they are video (batch, frames, channels, height, width)."""
    out_spec: TreeSpec
    batch: int | None
    """The batch size, where the model could not be captured for any other."""
    regions: RegionTree
    """The parts of the graph that stand for one call."""
    watched: Watched
    """Places that the forward changes and that the graph depends on."""
    readings: Readings
    """What the forward reads besides the settings of its modules."""
    gradients: tuple[bool, ...] | None
    """The gradient mode of the caller, and which tensors require gradients, if the forward asks for that."""


def cleaned(
    program: GraphModule,
    record: ForwardRecord,
    model: nn.Module,
    call: Call,
    batch: int | None,
    recording: Recording,
    watched: Watched,
    gradients: tuple[bool, ...] | None,
    ignore_state: Sequence[str],
) -> Captured:
    """The captured graph module: flat inputs and outputs, no checks, parameters read from the model itself."""
    roots = [*model.named_modules(), *call.objects]
    graph, held = _flat_graph(program, record)
    _put_parameters(held, roots)
    pair_modes(graph)
    place_kernels(graph)
    regions = build_tree(graph, recording)
    placeholders = _name_inputs(graph, model, call)
    modules, buffers = _named(graph, model, held)
    generators = {name: x.generator for name, x in modules.items() if isinstance(x, HeldGenerator)}
    placed = watched.watch_constants(roots, (*buffers.values(), *generators.values()))
    _check_generators(graph, model, {name for name, x in generators.items() if generator_key(x) not in placed})
    graph_module = graph_module_of(graph, {**modules, MODEL: model}, buffers, class_name(model))
    readings = _readings(model, call, regions, record, ignore_state)
    _watch_values(graph, model, buffers, record.values, watched, readings)
    images = tuple(placeholders[i].name for i in call.places)
    layout = (images, call.frames_first)
    return Captured(graph_module, *layout, record.out_spec, batch, regions, watched, readings, gradients)


def _flat_graph(program: GraphModule, record: ForwardRecord) -> tuple[Graph, dict[str, Any]]:
    """The graph with flat outputs, calls on tensors and changes of state as nodes of it; and what its nodes hold."""
    graph = Graph()
    # graph_copy returns the outputs, and adds no output node
    outputs = tree_leaves(graph.graph_copy(program.graph, {}), is_leaf=lambda x: x is None)
    # Entry returns the outputs of the model first, then what it computes for the places that change
    split = len(outputs) - sum(len(change.outputs) for change in record.changes)
    graph.output(tuple(outputs[:split]))
    held = {str(n.target): _attribute(program, str(n.target)) for n in graph.nodes if n.op == "get_attr"}
    handles: dict[int, Node] = {}
    if record.tensor_calls.calls:
        held[_CALLS] = TensorCalls(record.tensor_calls.calls)
        handles = place_tensor_calls(graph, _CALLS, record.tensor_calls)
    if record.changes:
        held[_STATE] = Stored(record.changes)
        put_state(graph, _STATE, record.changes, outputs[split:], handles)
    return graph, held


def _name_inputs(graph: Graph, model: nn.Module, call: Call) -> list[Node]:
    """Name the inputs as the model's own forward does, and the modules of nodes relative to the model."""
    for node in graph.nodes:
        _strip_entry(node, class_name(model))
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node, name in zip(placeholders, names_of(call, model), strict=False):
        rename(node, name.partition(".")[0])
        # the target of a placeholder is the name of the parameter in the code
        node.target = node.name
    return placeholders


def _readings(
    model: nn.Module, call: Call, regions: RegionTree, record: ForwardRecord, ignore_state: Sequence[str]
) -> Readings:
    """What the forward reads, without what the graph computes, changes or, by the user's decision, ignores."""
    changed = {change.place for change in record.changes}
    return Readings(
        model,
        call.objects,
        _computed_hooks(regions),
        lambda container, key: (
            (id(container.held), key) in changed or is_ignored_state(container.name_of(key), ignore_state)
        ),
    )


def _put_parameters(held: dict[str, Any], roots: Sequence[tuple[str, Any]]) -> None:
    """Replace constants that torch.export makes of parameters outside of the model by these, so that they are trained.

    Such are parameters of modules in plain lists, of other modules that code refers to, and global variables.
    """
    constants = {name: x for name, x in held.items() if type(x) is Tensor and not x.requires_grad}
    if constants:
        parameters = {_data_key(x): x for x in Reach(roots).parameters.values() if type(x) is nn.Parameter}
        held |= {name: parameters[_data_key(x)] for name, x in constants.items() if _data_key(x) in parameters}


def _data_key(x: Tensor) -> tuple[Any, ...]:
    return storage_key(x), x.shape, x.stride(), x.storage_offset()


def _computed_hooks(regions: RegionTree) -> set[int]:
    """The identities of the hooks that are a part of the graph."""
    calls = [region for region in regions.regions if isinstance(region, HookedCall)]
    return {
        id(vars(call.subject)[kind][n])
        for call in calls
        for kind in FORWARD_HOOKS
        for n in call.computed
        if n in vars(call.subject)[kind]
    }


def _named(graph: Graph, model: nn.Module, held: dict[str, Any]) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """The modules and the tensors that a graph holds itself, by the names by which its nodes read them from now on."""
    modules: dict[str, nn.Module] = {}
    buffers: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and not _is_own(model, str(node.target)):
            path, node.target = str(node.target), str(node.target).replace(".", "_")
            if isinstance(held[path], torch.Generator):
                modules[node.target] = HeldGenerator(held[path])
                node.target += ".generator"
            else:  # modules among them are functions that an operator takes
                (modules if isinstance(held[path], nn.Module) else buffers)[node.target] = held[path]
    return modules, buffers


def _check_generators(graph: Graph, model: nn.Module, made: set[str]) -> None:
    """Raise CaptureError if a graph reads a generator that the forward makes; ``made`` are the names of such."""
    for reader in graph.nodes:
        if any(x.op == "get_attr" and str(x.target).removesuffix(".generator") in made for x in reader.all_input_nodes):
            raise CaptureError(
                f"the forward of {class_name(model)} creates a torch.Generator, which an aligned call would not "
                f"create again\n{describe(reader)}\nCreate it in __init__, and seed it outside the forward."
            )


def _watch_values(
    graph: Graph, model: nn.Module, held: dict[str, Tensor], values: ValueRecorder, watched: Watched, readings: Readings
) -> None:
    """Watch the values that a forward reads as numbers, and those that it may read as bounds of slices.

    Raises CaptureError if the graph writes to a tensor of the former.
    """
    written = written_storages(graph.nodes)
    changed = {id(held[str(n.target)]): n for n in graph.nodes if storage_of(n) in written and str(n.target) in held}
    for node in (changed[key] for key in values.tensors if key in changed):
        raise CaptureError(
            f"the forward of {class_name(model)} writes to a plain tensor and reads it as a number, which would be "
            f"that of the time of capture\n{describe(next(iter(node.users)))}\n"
            "Keep it in a buffer (register_buffer), and compute with the tensor, not with its number."
        )
    numbers = [x for x in readings.tensors if x.numel() == 1 and not x.is_floating_point() and id(x) not in changed]
    watched.watch_values((*values.tensors.values(), *numbers))


class HeldGenerator(nn.Module):
    """A random generator of the model, as a part of the graph's module: a buffer would have to be a tensor."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator


def _attribute(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


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
