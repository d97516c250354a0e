"""Capture: a model's forward as a torch.fx graph of ATen operators, bound live to the model's own parameters."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from tlfx._torch import build_dynamo_tables, tree_unflatten
from tlfx.capture.arguments import Call, is_channels_last
from tlfx.capture.capture_errors import check_data, check_global_hooks, check_sizes, check_vmap, explain, unknown_size
from tlfx.capture.captured import Captured, cleaned
from tlfx.capture.entry import Entry, ForwardRecord
from tlfx.capture.model_class import class_name, own_forward
from tlfx.capture.modes import gradients_of, without_mode_passes
from tlfx.capture.recording import Recording, recorded_regions
from tlfx.capture.recurrent import recurrent_shapes
from tlfx.capture.sharding import whole_parameters
from tlfx.capture.state.refusals import check_changes, random_error
from tlfx.capture.state.snapshot import Change, state_kept
from tlfx.capture.state.stored import Watched
from tlfx.capture.surroundings import capture_mode, quiet
from tlfx.errors import CaptureError, TlfxError
from tlfx.rules.registry import REGISTRY

__all__ = ["Captured", "capture"]


def capture(model: nn.Module, call: Call, any_batch: bool = True, ignore_state: Sequence[str] = ()) -> Captured:
    """Capture the model's own forward for a call, in the model's present mode, for any batch size if it can be.

    Without ``any_batch`` it is captured for the batch size of the call only, which takes half the time. Changes of
    state that a pattern of ``ignore_state`` matches are not captured; see :func:`tlfx.align`.

    The model, its buffers and attributes, and the global random state are unchanged. Raises CaptureError with the
    reason, the source line and the remedy.
    """
    check_global_hooks(class_name(model))
    check_data(model, call.images)
    REGISTRY.load()  # an error in a rule must not look like a failure of the model
    captured = _capture(model, call, any_batch, ignore_state)
    if captured.batch is None and unknown_size(captured.graph_module.graph):  # it may follow from the batch size
        captured = _capture(model, call, False, ignore_state)
    check_sizes(class_name(model), captured.graph_module.graph)
    check_vmap(class_name(model), captured.graph_module.graph)
    return captured


def _capture(model: nn.Module, call: Call, any_batch: bool, ignore_state: Sequence[str]) -> Captured:
    """The same without checks of the graph."""
    entry = Entry(model, call, ignore_state)
    gradients = torch.is_grad_enabled()
    program = _export_as_called(entry, any_batch)
    if program.record.modes.is_read and (not gradients or any(x.requires_grad for x in call.tensors)):
        entry.requires_grad = tuple(x.requires_grad for x in call.tensors)
        program = _export(entry, any_batch, gradients)
    changes = program.record.changes
    check_changes(model, changes, lambda: _run(model, call))
    try:
        watched = Watched(changes, _leaves_graph(entry, program, gradients)) if changes else Watched()
    except CaptureError:
        if any_batch and any(change.has_batch for change in changes):  # the next batch may have to be of the same size
            return _capture(model, call, False, ignore_state)
        raise
    return cleaned(
        program.graph_module,
        program.record,
        model,
        call,
        program.batch,
        program.recording,
        watched,
        gradients_of(model, call.tensors) if program.record.modes.is_read else None,
        ignore_state,
    )


@dataclass(frozen=True, eq=False)
class _Program:
    """What torch.export makes of a forward, and what was recorded meanwhile."""

    graph_module: GraphModule
    record: ForwardRecord
    recording: Recording
    batch: int | None
    """The batch size, unless it is free."""

    def is_same(self, other: _Program) -> bool:
        """Whether two programs have equal graphs and equal constants."""
        if str(self.graph_module.graph) != str(other.graph_module.graph):
            return False
        ours, theirs = (dict(p.graph_module.named_buffers(remove_duplicate=False)) for p in (self, other))
        return ours.keys() == theirs.keys() and all(x is theirs[k] or _are_equal(x, theirs[k]) for k, x in ours.items())


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _leaves_graph(entry: Entry, program: _Program, gradients: bool) -> bool:
    """Whether the forward gives the same graph again in the state that it leaves.

    Raises CaptureError if it changes the state again, and otherwise than at its first call.
    """
    model = entry.model
    changes = program.record.changes
    if all(change.keeps_type for change in changes):
        return False
    again = Entry(model, entry.call, entry.ignore_state)
    again.requires_grad, again.traced = entry.requires_grad, entry.traced
    with state_kept([*model.named_modules(), *entry.call.objects]):
        for change in changes:
            change.put_example()
        second = _export(again, program.batch is None, gradients)
    check_changes(model, second.record.changes, lambda: _run(model, entry.call, changes), after=changes)
    return program.is_same(second)


def _export_as_called(entry: Entry, any_batch: bool) -> _Program:
    """Export a forward as the code runs that is not traced, if it can be. Raises CaptureError."""
    try:
        return _export(entry, any_batch)
    except CaptureError:
        if not entry.record.modes.asks_whether_traced:
            raise
    entry.traced = True
    return _export(entry, any_batch)


def _export(entry: Entry, any_batch: bool, gradients: bool = True) -> _Program:
    """Export a forward, for any batch size if it can be, with gradients if they are visible. Raises CaptureError."""
    call, model = entry.call, entry.model
    batched = [x.dim() > 0 and x.shape[0] == call.batch for x in call.tensors]
    # for any batch size, then for that of the call
    attempts = [(batched, None), (None, call.batch)] if any_batch else [(None, call.batch)]
    for attempt in attempts:
        recording = Recording()
        try:
            dynamic, batch = attempt
            return _Program(_export_for(entry, dynamic, recording, gradients), entry.record, recording, batch)
        except Exception as error:
            function = recording.function_that_raised(error)
            if isinstance(error, TlfxError) and function is None:
                raise
            if attempt is attempts[-1]:
                raise explain(class_name(model), error, lambda: _run(model, call), call.tensors, function) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _export_for(entry: Entry, dynamic: list[bool] | None, recording: Recording, gradients: bool) -> GraphModule:
    """The graph of a forward; its regions go to ``recording``."""
    tensors, model = entry.call.tensors, entry.model
    size = Dim("batch", min=1, max=4096)
    build_dynamo_tables()  # before functions of torch are replaced: flex attention runs dynamo
    shapes = None if dynamic is None else (tuple({0: size} if d else {} for d in dynamic),)
    with (
        state_kept([*model.named_modules(), *entry.call.objects]) as changed_random_state,
        capture_mode(gradients),
        quiet(),
        whole_parameters(model),
        recorded_regions(model, recording),
        without_mode_passes(),
        recurrent_shapes(),
    ):
        example = tuple(_example(x, bool(dynamic and dynamic[i])) for i, x in enumerate(tensors))
        for x, requires_grad in zip(example, entry.requires_grad, strict=True):
            x.requires_grad_(requires_grad)
        context = copy_context()  # context variables that the forward sets end with it
        # not strict: the forward runs as Python code, in which functions of torch can be replaced
        program = context.run(torch.export.export, entry, example, dynamic_shapes=shapes, strict=False)
        changed = changed_random_state()
        # newer versions of torch add checks of guards to the module
        unchecked = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        exported = program.module(**unchecked)
    if changed is not None:  # the graph would repeat the same numbers at every call
        raise random_error(model, changed, lambda: _run(model, entry.call))
    return exported


def _example(x: Tensor, batched: bool) -> Tensor:
    """The shape, type and layout of a tensor, at batch 2 if its batch size is free."""
    # torch.export takes sizes of 0 and 1 for constants
    shape = (2, *x.shape[1:]) if batched else x.shape
    example = torch.zeros(shape, dtype=x.dtype, device=x.device)
    return example.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else example


def _run(model: nn.Module, call: Call, changes: Sequence[Change] = ()) -> None:
    """Run a forward in the state after some changes, and restore buffers, attributes and random states."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with state_kept([*model.named_modules(), *call.objects]), torch.no_grad():
            for change in changes:
                change.put_example()
            args, kwargs = tree_unflatten(call.leaves, call.spec)  # containers among the arguments stay as they are
            own_forward(model)(model, *args, **kwargs)
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
